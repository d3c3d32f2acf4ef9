"""Numbers that prose can quote: `{glue:}` in the text shows what a cell measured."""

from typing import SupportsFloat

from companion.display.text import measured

# myst-nb looks for outputs with this prefix and the name in the metadata of the output.
_PREFIX = "application/papermill.record/"


def glue(name: str, value: SupportsFloat, format: str = ".3g") -> None:
    """Makes a measured number available to the text of the chapter under a name.

    Outside Jupyter this does nothing.

    Args:
        name: lowercase words with dashes, unique in the book; start with the chapter's number.
        value: the number.
        format: a format specification for floats, or for whole numbers, such as ",d".
    """
    try:
        from IPython.display import publish_display_data
    except ImportError:
        return
    publish_display_data(
        {_PREFIX + "text/html": measured(value, format)},
        metadata={"scrapbook": {"name": name, "mime_prefix": _PREFIX}},
    )
