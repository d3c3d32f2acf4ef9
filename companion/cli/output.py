"""What commands print and write."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from companion.cli.flags import UsageError
from companion.files import write_atomically
from companion.measurement import Measurement


def number(value: float | None) -> str:
    """Returns a number as tables show it."""
    if value is None:
        return "not finite"
    if value != int(value):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{int(value):,}"


def table(measurements: Iterable[Measurement]) -> str:
    """Returns measurements in two columns: what was measured, and the number with its spread."""
    rows = []
    for m in measurements:
        spread = "" if m.spread is None else f" ± {number(m.spread)}"
        rows.append((m.label, f"{number(m.value)}{spread}"))
    if not rows:
        return "  nothing to measure"
    left, right = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"  {label:<{left}}  {value:>{right}}" for label, value in rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as aligned columns, the first of them a heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def as_json(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """Returns measurements as JSON holds them."""
    return [asdict(m) for m in measurements]


def require_free(path: str | Path | None, overwrite: bool) -> None:
    """Makes sure, before any work, that an output is not written over something.

    Raises:
        UsageError: if there is such a file and `overwrite` does not allow it.
    """
    if path is None or str(path) == "-" or overwrite:
        return
    if Path(path).exists():
        raise UsageError(f"{str(path)!r} is there already; give another name, or --overwrite.")


def write(path: Path, content: bytes) -> None:
    """Writes a file, and its folder if need be.

    Raises:
        OSError: naming the file that was asked for, whatever names it has while it is written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        if not error.strerror:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(content: object, to: str | None) -> None:
    """Writes JSON to a file, or prints it for "-"."""
    if to is None:
        return
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    if to == "-":
        print(text)
    else:
        write(Path(to), (text + "\n").encode())
