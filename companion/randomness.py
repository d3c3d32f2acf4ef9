"""Random numbers that do not depend on how a batch is split over processes or micro-batches.

Everything that draws in `companion` takes a `Source`: an ordinary `torch.Generator`, or `Rows`, which draws the
numbers of a whole global batch from one generator and hands out the rows that this process works on. So one
process with 64 images, two with 32 each, and one that accumulates gradients over four times 16 see the same
noise on the same image. The price is that each draws for all; for images of a few thousand numbers that is
nothing beside a network.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows `start` … `stop` − 1 of a global batch of `total` samples.

    Attributes:
        generator: seeded alike in every process, so that all draw the same.
        start: the first row that belongs here.
        stop: the row after the last.
        total: number of rows of the global batch.

    Raises:
        ValueError: if the rows do not lie within the batch, or there are none.
    """

    generator: torch.Generator
    start: int
    stop: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.total:
            raise ValueError(
                f"rows {self.start}…{self.stop} do not lie in a batch of {self.total}."
            )


Source = torch.Generator | Rows


def derive(seed: int, *names: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Returns a new generator that is a function of a seed and of what it is for.

    The same arguments give the same numbers on every machine of the same kind; different ones give independent
    streams, so that, say, step 1,000 of a training needs no memory of the 999 before it.

    Args:
        seed: the run's seed.
        names: what the numbers are for, such as "noise", step.
        device: where the numbers are drawn; CPU and CUDA draw different ones.
    """
    text = repr((seed, *names)).encode()
    return torch.Generator(device).manual_seed(
        int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
    )


def _whole(
    shape: tuple[int, ...], source: Source
) -> tuple[torch.Generator, tuple[int, ...], slice]:
    if isinstance(source, torch.Generator):
        return source, shape, slice(None)
    if shape[0] != source.stop - source.start:
        raise ValueError(
            f"the first dimension must be the {source.stop - source.start} samples of this process, got the "
            f"shape {shape}."
        )
    return source.generator, (source.total, *shape[1:]), slice(source.start, source.stop)


def _place(drawn: Tensor, device: str | torch.device | None) -> Tensor:
    return drawn if device is None else drawn.to(device)


def normal(
    shape: tuple[int, ...], source: Source, device: str | torch.device | None = None
) -> Float[Tensor, "..."]:
    """Draws standard normal numbers; the first dimension counts the samples.

    Args:
        shape: of what this process needs.
        source: the generator, or the rows of a global batch.
        device: where they go; by default they stay with the generator.
    """
    generator, whole, rows = _whole(shape, source)
    return _place(torch.randn(whole, generator=generator, device=generator.device)[rows], device)


def uniform(
    shape: tuple[int, ...], source: Source, device: str | torch.device | None = None
) -> Float[Tensor, "..."]:
    """Draws numbers uniform in [0, 1); arguments as for `normal`."""
    generator, whole, rows = _whole(shape, source)
    return _place(torch.rand(whole, generator=generator, device=generator.device)[rows], device)


def integers(
    high: int, shape: tuple[int, ...], source: Source, device: str | torch.device | None = None
) -> Int64[Tensor, "..."]:
    """Draws whole numbers uniform in 0 … high − 1; the other arguments as for `normal`."""
    generator, whole, rows = _whole(shape, source)
    drawn = torch.randint(high, whole, generator=generator, device=generator.device)
    return _place(drawn[rows], device)


@contextlib.contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Makes what is drawn from torch's global generator inside, as weights are, a function of the seed.

    Outside nothing changes: the global generator is put back as it was.
    """
    before = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(before)
