"""Text that goes into HTML: escaped, with a few marks of its own."""

import html
import math
import re
from numbers import Integral
from typing import SupportsFloat

_MEASURED = re.compile(
    r"&lt;data class=&quot;measured&quot; value=&quot;([^&]*)&quot;&gt;([^&]*)&lt;/data&gt;"
)
_MARKED = re.compile(r'<data class="measured"[^>]*>[^<]*</data>')
# Presentation types that Python has for whole numbers alone.
_WHOLE = tuple("bcdoxX")
_TAG = re.compile(r"<[^>]+>")


def format_number(value: SupportsFloat, format: str) -> str:
    """Formats a number with a true minus sign, and infinities and NaN as readers know them.

    Args:
        value: the number.
        format: a format specification for floats, or for whole numbers, such as ",d".

    Raises:
        ValueError: if the format is for whole numbers and the number is not, or is no format of numbers at all.
    """
    number = float(value)
    if math.isnan(number):
        return "not a number"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if format[-1:] not in _WHOLE:
        return f"{number:{format}}".replace("-", "−")
    # Whole numbers are not sent through float, which keeps 53 bits of them.
    whole = value if isinstance(value, Integral) else round(number)
    if whole != value:
        raise ValueError(
            f"the format {format!r} is for whole numbers, the number is {number:g}: use one such as '.0f' or '.3g'"
        )
    return f"{int(whole):{format}}".replace("-", "−")


def measured(value: SupportsFloat, format: str = ".3g") -> str:
    """Marks a number as measured: shown as usual, but not compared between machines.

    Use it for numbers in captions and explanations: `caption=f"FID falls to {measured(fid, '.1f')}."`

    Args:
        value: the number.
        format: a format specification for floats, or for whole numbers, such as ",d".

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
