"""Text that goes into HTML: escaped, with a few marks of its own."""

import html
import math
import re

_MEASURED = re.compile(
    r"&lt;data class=&quot;measured&quot; value=&quot;([^&]*)&quot;&gt;([^&]*)&lt;/data&gt;"
)
_MARKED = re.compile(r'<data class="measured"[^>]*>[^<]*</data>')
_TAG = re.compile(r"<[^>]+>")


def format_number(value: float, format: str) -> str:
    """Formats a number with a true minus sign, and infinities and NaN as readers know them."""
    value = float(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{format}}".replace("-", "−")


def measured(value: float, format: str = ".3g") -> str:
    """Marks a number as measured: shown as usual, but not compared between machines.

    Use it for numbers in captions and explanations: `caption=f"FID falls to {measured(fid, '.1f')}."`

    Args:
        value: the number.
        format: a format specification as for `format()`.

    Returns:
        A piece of HTML that the other functions of this package let through.
    """
    return f'<data class="measured" value="{float(value)!r}">{format_number(value, format)}</data>'


def to_html(text: str) -> str:
    """Escapes a line of text; keeps `measured` numbers, and turns `code` and *emphasis* into elements."""
    escaped = html.escape(text, quote=True)
    escaped = _MEASURED.sub(r'<data class="measured" value="\1">\2</data>', escaped)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"(?<![\w*])\*([^\s*][^*]*?)\*(?![\w*])", r"<em>\1</em>", escaped)


def to_attribute(text: str) -> str:
    """Escapes a line of text for an attribute; `measured` numbers become plain text."""
    return html.escape(_TAG.sub("", text), quote=True)


def without_measured(text: str) -> str:
    """Puts an ellipsis in place of `measured` numbers, for text that is compared between machines as it stands."""
    return _MARKED.sub("…", text)


def require_words(what: str, text: str) -> str:
    """Checks that an alternative text or a caption says something.

    Raises:
        ValueError: if the text is empty or blank.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} is {text!r}: every figure needs one; say what there is to see")
    return text.strip()
