"""Claims and verdicts: a claim of the lecture notes, the number that tests it, and what the number says."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from companion.display.glued import glue
from companion.display.text import format_number, measured, require_words, to_html
from companion.errors import unknown_name

Verdict = Literal["true", "nuanced", "wrong"]

#: How a verdict is worded on the card.
VERDICTS: dict[str, str] = {
    "true": "✓ true",
    "nuanced": "≈ true with a nuance",
    "wrong": "✗ wrong as written",
}


@dataclass(frozen=True)
class Claim:
    """A measured claim; the last expression of a cell shows it as a card.

    Attributes:
        id: the claim's name in `book/claims.yml`, such as "IS-2".
        text: the claim in one sentence, or "" where the registry is not at hand.
        value: the measured number.
        between: the interval that the number must lie in.
        verdict: "true", "nuanced" or "wrong".
        because: what the number says about the claim.
        format: how the number is shown.
        unit: what follows the number.
    """

    id: str
    text: str
    value: float
    between: tuple[float, float]
    verdict: Verdict
    because: str
    format: str
    unit: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        # The metadata lets a test read the measurement back from the committed notebook.
        record = {
            "claim": self.id,
            "value": self.value,
            "between": list(self.between),
            "verdict": self.verdict,
        }
        return {"text/html": self.html, "text/plain": repr(self)}, {"companion": record}

    @property
    def html(self) -> str:
        """The card."""
        lo, hi = (format_number(bound, "g") for bound in self.between)
        unit = f" {to_html(self.unit)}" if self.unit else ""
        text = f'<p class="cmp-claim-text">{to_html(self.text)}</p>' if self.text else ""
        return (
            f'<div class="cmp-claim cmp-verdict-{self.verdict}" id="claim-{self.id}">'
            f'<p class="cmp-claim-head"><span class="cmp-claim-id">Claim {self.id}</span> '
            f'<span class="cmp-claim-verdict">{VERDICTS[self.verdict]}</span></p>{text}'
            f'<p class="cmp-claim-number">Measured: <strong>{measured(self.value, self.format)}{unit}</strong> '
            f"<span>(must lie between {lo} and {hi})</span></p>"
            f'<p class="cmp-claim-because">{to_html(self.because)}</p></div>'
        )

    def __repr__(self) -> str:
        return f"Claim {self.id}: {VERDICTS[self.verdict]}"


@cache
def _read_registry(path: Path) -> dict[str, dict[str, str]]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def find_registry(start: Path | None = None) -> Path | None:
    """Looks for `claims.yml` or `book/claims.yml` in a folder and the folders above it.

    Args:
        start: where to begin; the working directory if not given.

    Returns:
        Its path, or nothing where the book is not at hand (a notebook run on its own, for instance).
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        for candidate in (folder / "claims.yml", folder / "book" / "claims.yml"):
            if candidate.is_file():
                return candidate
    return None


def claim(
    id: str,
    value: float,
    *,
    between: tuple[float, float],
    verdict: Verdict,
    because: str,
    format: str = ".3g",
    unit: str = "",
) -> Claim:
    """States what an experiment says about a claim of the lecture notes, and insists on it.

    The number is also glued under the claim's id, so that the text can quote it.

    Args:
        id: the claim's name in `book/claims.yml`.
        value: the measured number.
        between: the closed interval that the number must lie in for the verdict to hold.
        verdict: "true", "nuanced" (true with a nuance that must be shown) or "wrong" (wrong as written).
        because: one or two sentences that tie the number to the verdict.
        format: how the number is shown.
        unit: what follows the number.

    Returns:
        The card.

    Raises:
        AssertionError: if the number is not in the interval.
        ValueError: for an unknown id or verdict, an empty interval, or a verdict other than the registry's.
    """
    if verdict not in VERDICTS:
        raise unknown_name("verdict", verdict, VERDICTS)
    require_words("because", because)
    lo, hi = (float(bound) for bound in between)
    if not lo < hi:
        raise ValueError(f"claim {id}: the interval ({lo:g}, {hi:g}) is empty: give (lower, upper)")
    text = ""
    if (path := find_registry()) is not None:
        registry = _read_registry(path)
        if id not in registry:
            raise unknown_name("claim", id, registry, f"The registry is {path.name}.")
        text = registry[id]["text"]
        if registry[id]["verdict"] != verdict:
            raise ValueError(
                f"claim {id}: this cell says {verdict!r}, {path.name} says {registry[id]['verdict']!r}: "
                "one of them must change"
            )
    value = float(value)
    if math.isnan(value) or not lo <= value <= hi:
        raise AssertionError(
            f"claim {id}: measured {value:g}, which is not between {lo:g} and {hi:g}: the verdict {verdict!r} "
            "does not hold for this run"
        )
    glue(id, value, format)
    return Claim(id, text, value, (lo, hi), verdict, because, format, unit)
