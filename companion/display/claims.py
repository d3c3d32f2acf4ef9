"""Claims put at risk: a claim of the lecture notes, the number that could have refuted it, and what came out.

A claim is stated with the values that would refute it and the reason for them, and with a control that the same test
must tell apart: something that is known not to have the property. The verdict is computed from the numbers and has
to agree with `book/claims.yml`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, SupportsFloat, overload

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


# --- conditions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """A set of values, with the reason for its bounds; made by `below`, `above`, `outside` and `inside`.

    Attributes:
        kind: "below" or "above" a bound, "outside" or "inside" two of them; the bounds themselves belong to "inside"
            and to none of the others.
        bounds: one bound, or the lower and the upper one.
        because: why these bounds.
    """

    kind: Literal["below", "above", "outside", "inside"]
    bounds: tuple[float, ...]
    because: str

    def __post_init__(self) -> None:
        require_words(f"{self.kind}(…, because=)", self.because)
        for bound in self.bounds:
            if not math.isfinite(bound):
                raise ValueError(
                    f"{self.kind}({bound:g}): such a condition says nothing: give a finite bound"
                )
        if len(self.bounds) == 2 and not self.bounds[0] < self.bounds[1]:
            low, high = self.bounds
            raise ValueError(f"{self.kind}({low:g}, {high:g}): give the lower bound first")

    def holds(self, value: float) -> bool:
        """Says whether a value meets the condition."""
        if self.kind == "below":
            return value < self.bounds[0]
        if self.kind == "above":
            return value > self.bounds[0]
        low, high = self.bounds
        return (low <= value <= high) is (self.kind == "inside")

    def distance(self, value: float) -> float:
        """Returns how far a value is from the nearest bound."""
        return min(abs(value - bound) for bound in self.bounds)

    def words(self, unit: str = "") -> str:
        """Words the condition without its reason: "below 4 modes", "outside 0.45 to 0.55"."""
        numbers = " to ".join(format_number(bound, "g") for bound in self.bounds)
        return f"{self.kind} {numbers}" + (f" {unit}" if unit else "")

    def record(self) -> dict[str, Any]:
        """Returns the condition as JSON holds it."""
        return {"kind": self.kind, "bounds": list(self.bounds), "because": self.because}


def below(bound: SupportsFloat, *, because: str) -> Condition:
    """The values less than a bound.

    Args:
        bound: a finite number.
        because: why this bound, in half a sentence: "an evenly spread circle scores 4".

    Raises:
        ValueError: for a bound that is not finite, or no reason.
    """
    return Condition("below", (float(bound),), because)


def above(bound: SupportsFloat, *, because: str) -> Condition:
    """The values greater than a bound; arguments and errors as for `below`."""
    return Condition("above", (float(bound),), because)


def outside(low: SupportsFloat, high: SupportsFloat, *, because: str) -> Condition:
    """The values less than `low` or greater than `high`; errors as for `below`, and for bounds in the wrong order."""
    return Condition("outside", (float(low), float(high)), because)


def inside(low: SupportsFloat, high: SupportsFloat, *, because: str) -> Condition:
    """The values from `low` to `high`, both included; errors as for `outside`."""
    return Condition("inside", (float(low), float(high)), because)


@dataclass(frozen=True)
class Control:
    """What the test must tell apart from the claim's case.

    If the claim survives, the control must be refuted by the same condition; if the claim is refuted, the control must
    not be, which shows that the test can be passed.

    Attributes:
        name: what was measured, such as "an evenly spread circle".
        value: its number, measured like the claim's.
        spread: the standard deviation of that number over seeds, if it is known.
    """

    name: str
    value: SupportsFloat
    spread: SupportsFloat | None = None

    def __post_init__(self) -> None:
        require_words("the control's name", self.name)
        object.__setattr__(self, "value", _finite("the control's value", self.value))
        object.__setattr__(self, "spread", _spread("the control's spread", self.spread))


@dataclass(frozen=True)
class Nuance:
    """What qualifies a claim that is true, with the number that shows it.

    Attributes:
        text: the qualification, in a sentence.
        value: its number.
        shown_if: the values that show it, with the reason for the bound.
        format: how the number is shown.
        unit: what follows the number.
    """

    text: str
    value: SupportsFloat
    shown_if: Condition
    format: str = ".3g"
    unit: str = ""

    def __post_init__(self) -> None:
        require_words("the nuance's text", self.text)
        object.__setattr__(self, "value", _finite("the nuance's value", self.value))

    @property
    def shown(self) -> bool:
        """Whether the number shows it."""
        return self.shown_if.holds(float(self.value))


def _finite(what: str, value: SupportsFloat) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise AssertionError(f"{what} is {number:g}: a measurement must be a finite number")
    return number


def _spread(what: str, value: SupportsFloat | None) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{what} is {number:g}: give a standard deviation of 0 or more")
    return number


# --- cards --------------------------------------------------------------------------------------------------


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", "…")) else text + "."


def _clause(text: str) -> str:
    return text.strip().rstrip(".")


def _number(
    value: SupportsFloat, format: str, unit: str, spread: SupportsFloat | None = None
) -> str:
    shown = measured(float(value), format)
    if spread is not None:
        shown += f" ± {measured(float(spread), '.2g')}"
    return shown + (f" {to_html(unit)}" if unit else "")


def _card(id: str, verdict: Verdict, text: str, body: Sequence[str]) -> str:
    """Wraps the parts of a card in its frame."""
    claim_text = f'<p class="cmp-claim-text">{to_html(text)}</p>' if text else ""
    return (
        f'<div class="cmp-claim cmp-verdict-{verdict}" id="claim-{id}">'
        f'<p class="cmp-claim-head"><span class="cmp-claim-id">Claim {id}</span> '
        f'<span class="cmp-claim-verdict">{VERDICTS[verdict]}</span></p>{claim_text}'
        + "".join(body)
        + "</div>"
    )


@dataclass(frozen=True)
class Claim:
    """A claim that was put at risk; the last expression of a cell shows it as a card.

    Attributes:
        id: the claim's name in `book/claims.yml`, such as "IS-2".
        text: the claim in one sentence, or "" where the registry is not at hand.
        value: the measured number.
        spread: its standard deviation over seeds, if it was given.
        refuted_if: the values that would have refuted the claim.
        control: what the test must tell apart.
        nuance: what qualifies the claim, if anything.
        because: what the number says about the claim.
        format: how numbers are shown.
        unit: what follows the numbers.
    """

    id: str
    text: str
    value: float
    spread: float | None
    refuted_if: Condition
    control: Control
    nuance: Nuance | None
    because: str
    format: str
    unit: str

    @property
    def refuted(self) -> bool:
        """Whether the measured number refutes the claim."""
        return self.refuted_if.holds(self.value)

    @property
    def verdict(self) -> Verdict:
        """Wrong if refuted; else nuanced if the nuance is shown; else true."""
        if self.refuted:
            return "wrong"
        return "nuanced" if self.nuance is not None and self.nuance.shown else "true"

    def check(self) -> None:
        """Checks that the experiment can decide.

        Raises:
            ValueError: if the control's number is the claim's own.
            AssertionError: if the control is on the claim's side of the bound, or one of the numbers is nearer to the
                bound than its spread.
        """
        control = float(self.control.value)
        if control == self.value:
            raise ValueError(
                f"claim {self.id}: the control has the measured value itself ({control:g}): measure something "
                "that does not have the property"
            )
        if self.refuted_if.holds(control) is self.refuted:
            side = (
                "is refuted as well: nothing shows that the test can be passed"
                if self.refuted
                else "is not refuted: the test cannot tell it from what the claim is about"
            )
            raise AssertionError(
                f"claim {self.id}: measured {self.value:g}; the control, {_clause(self.control.name)}, has "
                f"{control:g} and {side} (refuted if {self.refuted_if.words(self.unit)})"
            )
        noise = self.spread if self.control.spread is None else float(self.control.spread)
        for what, number, spread in (
            ("the measured value", self.value, self.spread),
            ("the control", control, noise),
        ):
            if spread is not None and self.refuted_if.distance(number) <= spread:
                raise AssertionError(
                    f"claim {self.id}: {what}, {number:g} ± {spread:g}, is within its spread of the bound "
                    f"({self.refuted_if.words(self.unit)}): the experiment does not decide"
                )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        return {"text/html": self.html, "text/plain": repr(self)}, {"companion": self.record()}

    def record(self) -> dict[str, Any]:
        """Returns what a test needs to read the measurement back from the committed notebook, as JSON holds it."""
        nuance = self.nuance
        return {
            "claim": self.id,
            "value": self.value,
            "spread": self.spread,
            "refuted_if": self.refuted_if.record(),
            "control": {
                "name": self.control.name,
                "value": float(self.control.value),
                "spread": self.control.spread,
            },
            "nuance": nuance
            and {"value": float(nuance.value), "shown_if": nuance.shown_if.record()},
            "verdict": self.verdict,
        }

    @property
    def html(self) -> str:
        """The card."""
        condition = f"{to_html(self.refuted_if.words(self.unit))}, because {to_html(_clause(self.refuted_if.because))}."
        fate = (
            "not refuted, so the test can be passed" if self.refuted else "refuted, as it must be"
        )
        number = _number(self.value, self.format, self.unit, self.spread)
        rows = [
            f"<li><b>{'Refuted if' if self.refuted else 'Would be refuted if'}</b> {condition}</li>",
            f"<li><b>Control:</b> {to_html(_clause(self.control.name))}: "
            f"{_number(self.control.value, self.format, self.unit, self.control.spread)}; {fate}.</li>",
        ]
        if (nuance := self.nuance) is not None:
            rows.append(
                f"<li><b>Nuance{'' if nuance.shown else ', not shown here'}:</b> {to_html(_sentence(nuance.text))} "
                f"Measured: {_number(nuance.value, nuance.format, nuance.unit)}; shown if "
                f"{to_html(nuance.shown_if.words(nuance.unit))}, "
                f"because {to_html(_clause(nuance.shown_if.because))}.</li>"
            )
        return _card(
            self.id,
            self.verdict,
            self.text,
            [
                f'<p class="cmp-claim-number">Measured: <strong>{number}</strong></p>',
                f'<p class="cmp-claim-because">{to_html(self.because)}</p>',
                f'<ul class="cmp-claim-test">{"".join(rows)}</ul>',
            ],
        )

    def __repr__(self) -> str:
        return f"Claim {self.id}: {VERDICTS[self.verdict]}"


@dataclass(frozen=True)
class IntervalClaim:
    """A claim in the form that chapters 1 to 5 and 8 to 10 still have: a stated verdict and the interval it needs.

    Attributes:
        id, text, value, because, format, unit: as for `Claim`.
        between: the interval that the number must lie in.
        verdict: as stated in the cell.
    """

    id: str
    text: str
    value: float
    between: tuple[float, float]
    verdict: Verdict
    because: str
    format: str
    unit: str

    def check(self) -> None:
        """Checks the interval and the number.

        Raises:
            ValueError: for an unknown verdict, an empty interval or one that is open to everything.
            AssertionError: if the number is not in the interval.
        """
        if self.verdict not in VERDICTS:
            raise unknown_name("verdict", self.verdict, VERDICTS)
        low, high = self.between
        if not low < high:
            raise ValueError(
                f"claim {self.id}: the interval ({low:g}, {high:g}) is empty: give (lower, upper)"
            )
        if math.isinf(low) and math.isinf(high):
            raise ValueError(
                f"claim {self.id}: an interval open to everything refutes nothing: give a finite bound"
            )
        if not low <= self.value <= high:
            raise AssertionError(
                f"claim {self.id}: measured {self.value:g}, which is not between {low:g} and {high:g}: the verdict "
                f"{self.verdict!r} does not hold for this run"
            )

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
        low, high = (format_number(bound, "g") for bound in self.between)
        unit = f" {to_html(self.unit)}" if self.unit else ""
        return _card(
            self.id,
            self.verdict,
            self.text,
            [
                f'<p class="cmp-claim-number">Measured: <strong>{measured(self.value, self.format)}{unit}</strong> '
                f"<span>(must lie between {low} and {high})</span></p>",
                f'<p class="cmp-claim-because">{to_html(self.because)}</p>',
            ],
        )

    def __repr__(self) -> str:
        return f"Claim {self.id}: {VERDICTS[self.verdict]}"


# --- the registry -------------------------------------------------------------------------------------------


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


def _registered(id: str) -> tuple[str, str | None, str]:
    """Returns the claim's text and verdict, and the registry's name; "" and nothing where there is no registry.

    Raises:
        ValueError: if the registry does not have the claim.
    """
    if (path := find_registry()) is None:
        return "", None, ""
    registry = _read_registry(path)
    if id not in registry:
        raise unknown_name("claim", id, registry, f"The registry is {path.name}.")
    return registry[id]["text"], registry[id]["verdict"], path.name


# --- the statement ------------------------------------------------------------------------------------------


@overload
def claim(
    id: str,
    value: SupportsFloat,
    *,
    refuted_if: Condition,
    control: Control,
    because: str,
    nuance: Nuance | None = ...,
    spread: SupportsFloat | None = ...,
    format: str = ...,
    unit: str = ...,
) -> Claim: ...


@overload
def claim(
    id: str,
    value: SupportsFloat,
    *,
    between: tuple[SupportsFloat, SupportsFloat],
    verdict: Verdict,
    because: str,
    format: str = ...,
    unit: str = ...,
) -> IntervalClaim: ...


def claim(
    id: str,
    value: SupportsFloat,
    *,
    because: str,
    refuted_if: Condition | None = None,
    control: Control | None = None,
    nuance: Nuance | None = None,
    spread: SupportsFloat | None = None,
    between: tuple[SupportsFloat, SupportsFloat] | None = None,
    verdict: Verdict | None = None,
    format: str = ".3g",
    unit: str = "",
) -> Claim | IntervalClaim:
    """Puts a claim of the lecture notes at risk, and insists on what came out.

        claim(
            "GAN-9",
            modes,
            spread=sd,
            refuted_if=above(7.0, because="a stable game keeps all eight"),
            control=Control("the same game with a gradient penalty", 8.0),
            nuance=Nuance("…", stable_seeds, shown_if=above(8, because="…")),
            because="Left to itself, the game loses a quarter of the modes.",
            unit="of 8 modes",
        )

    The verdict is computed: wrong if the number refutes the claim, else nuanced if the nuance is shown, else true.
    The number is also glued under the claim's id, so that the text can quote it.

    Args:
        id: the claim's name in `book/claims.yml`.
        value: the measured number.
        refuted_if: the values that would refute the claim, and why: `below(…)`, `above(…)`, `outside(…)` or
            `inside(…)`, each with `because=`.
        control: what is known to come out on the other side of the bound.
        nuance: what qualifies a claim that is true, and the number that shows it.
        spread: the standard deviation of the number over seeds; verdict and control must then not hang on it.
        because: one or two sentences on what the number says.
        between, verdict: the older form without `refuted_if` and `control`, for the chapters that still have it: a
            closed interval that the number must lie in for the stated verdict.
        format: how numbers are shown.
        unit: what follows the claim's and the control's number.

    Returns:
        The card.

    Raises:
        AssertionError: if a number is not finite, the control is on the claim's side, a number is within its spread
            of the bound, or the verdict is not the registry's; in the older form, if the number is not in the
            interval.
        ValueError: for an unknown id, no words, a control with the claim's own number; in the older form, for an
            unknown verdict, an interval that is empty or open to everything, or a verdict other than the registry's.
        TypeError: for arguments of both forms, or not all of one.
    """
    require_words("because", because)
    old = between is not None or verdict is not None
    new = any(argument is not None for argument in (refuted_if, control, nuance, spread))
    if old and not new and between is not None and verdict is not None:
        low, high = (float(bound) for bound in between)
        return _claim_interval(id, float(value), (low, high), verdict, because, format, unit)
    if old or refuted_if is None or control is None:
        raise TypeError(
            f"claim {id}: give refuted_if= (such as below(4, because=…)) and control= (a Control with its own "
            "measured value); the verdict is computed from them"
        )
    number = _finite(f"claim {id}: the measured value", value)
    text, registered, registry = _registered(id)
    deviation = _spread(f"claim {id}: spread", spread)
    card = Claim(
        id, text, number, deviation, refuted_if, control, nuance, because, format, unit
    )  # fmt: skip
    card.check()
    if registered is not None and registered != card.verdict:
        raise AssertionError(
            f"claim {id}: measured {number:g}, which makes it {card.verdict!r} (refuted if "
            f"{refuted_if.words(unit)}), but {registry} says {registered!r}: change the verdict and the explanation "
            "there, or the experiment here if it does not test the claim"
        )
    glue(id, number, format)
    return card


def _claim_interval(
    id: str,
    value: float,
    between: tuple[float, float],
    verdict: Verdict,
    because: str,
    format: str,
    unit: str,
) -> IntervalClaim:
    text, registered, registry = _registered(id)
    card = IntervalClaim(id, text, value, between, verdict, because, format, unit)
    card.check()
    if registered is not None and registered != verdict:
        raise ValueError(
            f"claim {id}: this cell says {verdict!r}, {registry} says {registered!r}: one of them must change"
        )
    glue(id, value, format)
    return card
