"""Tables of measured numbers."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from companion.display.text import (
    measured,
    require_words,
    to_attribute,
    to_html,
    without_measured,
)


class Table:
    """A table with a caption; the last expression of a cell shows it.

    Attributes:
        rows: the rows as they were given.
        html: the table, in a box that scrolls sideways on a small screen.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], *, caption: str, formats: Mapping[str, str] | None
    ):
        self.rows = [dict(row) for row in rows]
        self.caption = require_words("caption", caption)
        if not self.rows:
            raise ValueError("the table has no rows: give at least one")
        columns = list(self.rows[0])
        if nameless := [i for i, name in enumerate(columns) if not str(name).strip()]:
            raise ValueError(
                f"column {nameless[0]} has no name: a reader who cannot see the table needs every one"
            )
        for i, row in enumerate(self.rows):
            if list(row) != columns:
                raise ValueError(
                    f"row {i} has columns {list(row)}, the first row has {columns}: give every row the same"
                )
        formats = dict(formats or {})
        if stray := set(formats) - set(columns):
            raise ValueError(
                f"formats for {sorted(stray)}, which are no columns: the columns are {columns}"
            )
        head = "".join(f'<th scope="col">{to_html(str(name))}</th>' for name in columns)
        body = "".join(_row(row, formats) for row in self.rows)
        label = to_attribute(without_measured(self.caption))
        self.html = (
            f'<div class="cmp-table-scroll" role="region" tabindex="0" aria-label="{label}">'
            f'<table class="cmp-table"><caption>{to_html(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return "Table: " + ", ".join(self.rows[0])


def _plain(column: str, value: Any) -> Any:
    """Turns a tensor or an array of one number, without dimensions, into that number."""
    if not hasattr(value, "ndim"):
        return value
    if value.ndim:
        raise TypeError(
            f"column {column!r} has an entry of shape {tuple(value.shape)}: a cell of a table holds one number; "
            "take its mean, say"
        )
    return value.item()


def _row(row: Mapping[str, Any], formats: Mapping[str, str]) -> str:
    cells = []
    for i, (name, value) in enumerate(row.items()):
        value = _plain(name, value)
        number = isinstance(value, Real) and not isinstance(value, bool)
        if number:
            text = measured(value, formats.get(name, "d" if isinstance(value, Integral) else ".3g"))
        else:
            text = to_html(str(value))
        cells.append(
            f'<th scope="row">{text}</th>'
            if i == 0
            else f"<td{' class=num' if number else ''}>{text}</td>"
        )
    return f"<tr>{''.join(cells)}</tr>"


def table(
    rows: Sequence[Mapping[str, Any]], *, caption: str, formats: Mapping[str, str] | None = None
) -> Table:
    """Shows rows of words and measured numbers.

    Args:
        rows: one mapping a row, all with the same keys in the same order; the first column names the row. Values are
            words or numbers, Python's, NumPy's or tensors without dimensions.
        caption: what to see in the table.
        formats: column → format specification of its numbers, such as ".2f" or ",d"; whole numbers are shown whole
            and others as ".3g" where not given.

    Raises:
        TypeError: for an array or a tensor with dimensions.
        ValueError: for no rows, a column without a name, rows that differ in their columns, a format for no
            column, or one for whole numbers where a number is not whole.
    """
    return Table(rows, caption=caption, formats=formats)
