"""A number that was measured, with what it is a number of."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number, and all that somebody needs to set it beside another.

    Attributes:
        name: what was measured, such as "FID" or "−ELBO"; the same word for the same thing everywhere.
        value: the number; None where it is not finite, such as the PSNR of equal images.
        data: the data set that it was measured on, such as "digits"; "" for a number of the training itself.
        split: the part of it, such as "test".
        unit: "nats", "dB", "bits/dim", or "" for a plain number.
        better: which way is an improvement.
        of: what exactly was measured, where there are several, such as "noise 0.5" or "codes from a mixture".
        samples: how many images were drawn or measured, on which FID and its like depend; 0 where it does not matter.
        seed: of what was drawn for it; None where nothing was.
        spread: standard deviation over repetitions, where there are some.
    """

    name: str
    value: float | None
    data: str = ""
    split: str = ""
    unit: str = ""
    better: Better = "neither"
    of: str = ""
    samples: int = 0
    seed: int | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        # JSON has no word for what is not finite.
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)

    @property
    def label(self) -> str:
        """All of it but the number, for a table: "digits/test, noise 0.5: reconstruction PSNR, dB"."""
        where = f"{self.data}/{self.split}" if self.data else ""
        place = ", ".join(part for part in (where, self.of) if part)
        unit = f", {self.unit}" if self.unit else ""
        return f"{place}: {self.name}{unit}" if place else f"{self.name}{unit}"


class About(TypedDict, total=False):
    """What several measurements have in common, as keyword arguments of `Measurement`."""

    data: str
    split: str
    of: str
    samples: int
    seed: int | None


def find(measurements: Iterable[Measurement], name: str, **where: str | int) -> Measurement:
    """Returns the one measurement of a name, and of other attributes if given: `find(card.measurements, "FID")`.

    Raises:
        KeyError: if there is none, or more than one; the message lists the candidates.
    """
    known = list(measurements)
    named = [m for m in known if m.name == name]
    found = [m for m in named if all(getattr(m, k) == v for k, v in where.items())]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(repr(m.label) for m in (found or named or known)) or "none"
    asked = ", ".join([repr(name), *(f"{k}={v!r}" for k, v in where.items())])
    many = "more than one measurement is" if found else "no measurement is"
    raise KeyError(f"{many} {asked}; there are: {listed}.")
