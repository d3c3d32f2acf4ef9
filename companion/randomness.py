"""Random numbers that do not depend on how a batch is split over processes or micro-batches.

Everything that draws in `companion` takes a `Source`:

- an ordinary `torch.Generator`;
- `Rows`, for training: it draws the numbers of a whole global batch from one generator and hands out the rows that
  this process works on. So one process with 64 images, two with 32 each, and one that accumulates gradients over four
  times 16 see the same noise on the same image. The price is that each draws for all; for images of a few thousand
  numbers that is nothing beside a network.
- `PerImage`, for sampling and evaluation: every image has a generator of its own, a function of the seed and of the
  image's number alone. So image 17 of seed 0 is the same in a batch of 1 and of 1,000, on one process and on eight,
  on a CPU and, up to rounding, on a GPU. Its numbers are drawn on the CPU.
"""

import contextlib
import functools
import hashlib
import operator
from collections.abc import Callable, Iterator
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


class PerImage:
    """A generator of its own for each of the images `start` … `stop` − 1 of a seed.

    Whoever draws several times from the same object goes on in every image's own stream.

    Args:
        seed: of all the images.
        start: number of the first image.
        stop: number after the last.
        name: what is drawn; other names give independent numbers for the same images.

    Raises:
        ValueError: if there are no images.
    """

    def __init__(self, seed: int, start: int, stop: int, name: str = "samples") -> None:
        if not 0 <= start < stop:
            raise ValueError(f"images {start}…{stop} are none: stop must be above start.")
        self.generators = [derive(seed, name, i) for i in range(start, stop)]

    def __len__(self) -> int:
        return len(self.generators)


Source = torch.Generator | Rows | PerImage


def source_of(n: int, source: "Source | None", seed: int | None) -> "Source":
    """Returns where `n` images draw from: the source that is given, or image by image from a seed.

    Raises:
        ValueError: unless exactly one of the two is given.
    """
    if source is not None and seed is None:
        return source
    if source is None and seed is not None:
        return PerImage(int(seed), 0, n)
    raise ValueError("give either seed=…, a whole number, or a source of random numbers.")


def derive(seed: int, *names: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Returns a new generator that is a function of a seed and of what it is for.

    The same arguments give the same numbers on every machine of the same kind; different ones give independent
    streams, so that, say, step 1,000 of a training needs no memory of the 999 before it.

    Args:
        seed: the run's seed.
        names: what the numbers are for, such as "noise", step.
        device: where the numbers are drawn; CPU and CUDA draw different ones.

    Raises:
        TypeError: if a seed or name is neither a whole number nor a string.
    """
    # NumPy's and PyTorch's whole numbers are the same seeds as Python's.
    text = repr(tuple(n if isinstance(n, str) else operator.index(n) for n in (seed, *names)))
    return torch.Generator(device).manual_seed(
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    )


def _whole(
    shape: tuple[int, ...], source: torch.Generator | Rows
) -> tuple[torch.Generator, tuple[int, ...], slice]:
    if isinstance(source, torch.Generator):
        return source, shape, slice(None)
    if shape[0] != source.stop - source.start:
        raise ValueError(
            f"the first dimension must be the {source.stop - source.start} samples of this process, got the "
            f"shape {shape}."
        )
    return source.generator, (source.total, *shape[1:]), slice(source.start, source.stop)


def _draw(
    fill: Callable[..., Tensor],
    shape: tuple[int, ...],
    source: Source,
    device: str | torch.device | None,
) -> Tensor:
    """Draws by `fill(shape, generator=…, device=…)`; the first dimension counts the samples."""
    if isinstance(source, PerImage):
        if shape[0] != len(source):
            raise ValueError(
                f"the first dimension must be the {len(source)} images of the source, got the shape {shape}."
            )
        rows = [fill(shape[1:], generator=g, device=g.device) for g in source.generators]
        return _place(torch.stack(rows), device)
    generator, whole, mine = _whole(shape, source)
    return _place(fill(whole, generator=generator, device=generator.device)[mine], device)


def _place(drawn: Tensor, device: str | torch.device | None) -> Tensor:
    return drawn if device is None else drawn.to(device)


def normal(
    shape: tuple[int, ...], source: Source, device: str | torch.device | None = None
) -> Float[Tensor, "..."]:
    """Draws standard normal numbers; the first dimension counts the samples.

    Args:
        shape: of what this process needs.
        source: the generator, the rows of a global batch, or a generator for each image.
        device: where they go; by default they stay with the generator.
    """
    return _draw(torch.randn, shape, source, device)


def uniform(
    shape: tuple[int, ...], source: Source, device: str | torch.device | None = None
) -> Float[Tensor, "..."]:
    """Draws numbers uniform in [0, 1); arguments as for `normal`."""
    return _draw(torch.rand, shape, source, device)


def integers(
    high: int, shape: tuple[int, ...], source: Source, device: str | torch.device | None = None
) -> Int64[Tensor, "..."]:
    """Draws whole numbers uniform in 0 … high − 1; the other arguments as for `normal`."""
    return _draw(functools.partial(torch.randint, high), shape, source, device)


@contextlib.contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Makes what is drawn from torch's global generator inside, as weights are, a function of the seed.

    Outside nothing changes: the global generator is put back as it was.
    """
    before = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(operator.index(seed))
        yield
    finally:
        torch.default_generator.set_state(before)
