"""Reads a scene off its picture, and says whether it is what the caption says.

The captioned scenes of `companion.data.scenes` have one right answer each, so a model that is told a caption, such as
DALL-E (Ramesh et al. 2021), can be marked. The oracle reads, of any 32×32 colour picture,

- **place**: whether its two things are side by side or one above the other, by where the ink lies;
- **colour** of each thing: the corner of the RGB cube that its ink is nearest to;
- **digit** of each thing: by the frozen digit classifier of the book's digit metrics, of the crop to the ink, enlarged
  to the 20 pixels and centred by its mass as MNIST's are.

A picture without two things of a digit's size, such as noise, a blank or three blobs, has nothing that could be read,
and everything about it counts as wrong. So does a colour such as white, or a digit that the classifier itself gives
less than even odds.

On 2,000 real scenes of held-out digits ("test") the oracle makes no error of place or colour, and reads 99.4 % of the
digits and both of them in 98.9 % of the scenes; these are the ceilings of what a model can reach. Chance is known too:
against the captions of other scenes the same pictures have the right place in 37 %, both colours in 5 %, both digits
in 1.6 %, and all of it in fewer than one of 500 (a scene is one of 4,608). Blurred by a 3×3 mean, 96 % of the digits
are still read; under noise of standard deviation 0.1, 99 %; noise of 0.3 leaves nothing that could be read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from companion.data.images import to_float
from companion.data.scenes import COLOURS, SIDE, Scene, Thing, parse
from companion.metrics.features import check_images, digit_probabilities

# Ink is what has this share of the picture's brightest value in one of red, green and blue.
INK = 0.25
# A picture whose brightest value is a smaller share of the range is taken for blank.
DARK = 0.2
# Pixels of a digit's longer side; real ones have 14 or 15.
LEAST, MOST = 9, 18
# Pixels between the middles of two things, along the line through both halves; real ones are 14 to 18 apart. The halves
# of one digit that was cut in two are not.
APART = 11
# Lines at which the two things may part; real ones part at 16.
CUTS = range(14, 19)
# A channel belongs to a colour from this share of the brightest on.
BRIGHT = 0.5
# Share of its ink by which a thing may differ from its colour.
IMPURE = 0.35
# Side of the crop's place in the classifier's 28×28 pixels.
MNIST_INK = 20


@dataclass(frozen=True)
class Reading:
    """What the oracle reads off one picture; first is the left or upper thing.

    Attributes:
        relation: "left of" or "above"; None if there are not two things.
        colours: of the first and the second thing; None for what is none of the six.
        digits: of the first and the second thing; None for what is no clear digit.
    """

    relation: str | None = None
    colours: tuple[str | None, str | None] = (None, None)
    digits: tuple[int | None, int | None] = (None, None)

    def scene(self) -> Scene | None:
        """Returns the scene, in the caption's words that name the left or upper thing first, if all could be read."""
        (a, b), (c, d) = self.colours, self.digits
        if self.relation is None or a is None or b is None or c is None or d is None:
            return None
        return Scene(Thing(a, c), self.relation, Thing(b, d))


@dataclass(frozen=True)
class Agreement:
    """What of a caption is right in a picture.

    Attributes:
        colour: of the first and the second thing of the caption.
        digit: of the first and the second thing of the caption.
        place: whether they stand as the caption says.
    """

    colour: tuple[bool, bool]
    digit: tuple[bool, bool]
    place: bool

    @property
    def all(self) -> bool:
        """Whether the picture shows just what the caption says."""
        return all(self.colour) and all(self.digit) and self.place


def agrees(scene: Scene | str, reading: Reading) -> Agreement:
    """Compares a scene, or its caption, with what was read off a picture.

    Which of the two things in the picture is the caption's first is decided by colours and digits: of the two ways to
    pair them, the one with more of the four right. If both have as many, the caption's places decide. So a picture of
    the right things in the wrong order has the right colours and digits and the wrong place, and `all` is true just
    of those pictures that show the scene.

    Raises:
        ValueError: if the caption is none.
    """
    said = parse(scene) if isinstance(scene, str) else scene
    if reading.relation is None:
        return Agreement((False, False), (False, False), False)
    wanted = said.canonical()
    found = _best(wanted, reading)
    if wanted == said:
        return found
    return Agreement(found.colour[::-1], found.digit[::-1], found.place)


def _best(wanted: Scene, reading: Reading) -> Agreement:
    """Compares with a scene that names the left or upper thing first."""
    ways = []
    for order in ((0, 1), (1, 0)):
        things = (wanted.first, wanted.second)
        colour = tuple(reading.colours[i] == t.colour for i, t in zip(order, things, strict=True))
        digit = tuple(reading.digits[i] == t.digit for i, t in zip(order, things, strict=True))
        place = reading.relation == wanted.relation and order == (0, 1)
        ways.append(Agreement((colour[0], colour[1]), (digit[0], digit[1]), place))
    # Of equals max takes the first, in which the places are as in the caption.
    return max(ways, key=lambda way: sum(way.colour) + sum(way.digit))


def accuracies(
    images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"],
    captions: Sequence[str],
    batch_size: int = 256,
) -> dict[str, float]:
    """Returns how often pictures show what their captions say.

    Returns:
        Shares of the pictures; one in which two things cannot be found counts as wrong in each:

        - "colour": both colours are right;
        - "digit": both digits are right;
        - "place": the things stand as the caption says;
        - "all": all of this, so the picture is that of the caption;

        and of the things, two a picture:

        - "each colour", "each digit": the thing's own is right.

        `agrees` says which thing is which.

    Raises:
        TypeError, ValueError: as from `read`, or if there are not as many captions, or one is none.
    """
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} images need as many captions, got {len(captions)}.")
    found = [
        agrees(caption, reading)
        for caption, reading in zip(captions, read(images, batch_size), strict=True)
    ]
    return {
        "colour": _mean(all(one.colour) for one in found),
        "digit": _mean(all(one.digit) for one in found),
        "place": _mean(one.place for one in found),
        "all": _mean(one.all for one in found),
        "each colour": _mean(right for one in found for right in one.colour),
        "each digit": _mean(right for one in found for right in one.digit),
    }


def _mean(values: Iterable[bool]) -> float:
    return float(np.mean(list(values)))


def read(
    images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"], batch_size: int = 256
) -> list[Reading]:
    """Reads the scene off each picture.

    Args:
        images: of 3×32×32 pixels, floats in [−1, 1] or bytes.
        batch_size: pictures at a time; it does not change the result.

    Raises:
        TypeError: if they are neither floats nor bytes.
        ValueError: if the shape or the range is wrong, a value is NaN, or there are no images.
    """
    check_images(images, 3, (SIDE, SIDE))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    with torch.no_grad():
        return [
            reading for part in images.detach().split(batch_size) for reading in _read_batch(part)
        ]


def _read_batch(images: Tensor) -> list[Reading]:
    floats = to_float(images) if images.dtype == torch.uint8 else images.float()
    light = (floats + 1).div(2).clamp(0, 1)
    brightest = light.amax((1, 2, 3), keepdim=True)
    light = torch.where(brightest >= DARK, light / brightest.clamp_min(DARK), 0.0)
    ink = light.amax(1)
    beside = _lie_beside(ink)
    # One above the other is side by side in the transposed picture.
    turned = torch.where(beside[:, None, None, None], light, light.mT)
    halves = _parted(turned)
    things = rearrange(halves, "two n c h w -> (n two) c h w")
    boxes, sized = _boxes(things)
    colours = _colours(things)
    upright = torch.where(beside.repeat_interleave(2)[:, None, None, None], things, things.mT)
    rows_first = torch.where(beside.repeat_interleave(2)[:, None], boxes, boxes[:, [2, 3, 0, 1]])
    digits = torch.full((len(things),), -1, device=images.device)
    if sized.any():
        digits[sized] = _digits(upright[sized].amax(1), rows_first[sized])
    middle = boxes[:, 2:].double().mean(1).reshape(-1, 2)
    whole = sized.reshape(-1, 2).all(1) & (middle[:, 1] - middle[:, 0] >= APART)
    names = (*COLOURS, None)
    numbers = (*range(10), None)
    found = zip(
        whole.tolist(),
        beside.tolist(),
        colours.reshape(-1, 2).tolist(),
        digits.reshape(-1, 2).tolist(),
        strict=True,
    )
    return [
        Reading("left of" if left else "above", (names[a], names[b]), (numbers[c], numbers[d]))
        if two
        else Reading()
        for two, left, (a, b), (c, d) in found
    ]


def _lie_beside(ink: Float32[Tensor, "n h w"]) -> Bool[Tensor, " n"]:
    """Says whether the ink is spread over columns rather than rows, by its variance along both."""
    where = torch.arange(SIDE, device=ink.device, dtype=ink.dtype)
    mass = (ink * (ink > INK)).double()
    total = mass.sum((1, 2)).clamp_min(1e-9)

    def variance(profile: Tensor) -> Tensor:
        mean = (profile * where).sum(1) / total
        return (profile * where**2).sum(1) / total - mean**2

    return variance(mass.sum(1)) >= variance(mass.sum(2))


def _parted(light: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, "two n 3 h w"]:
    """Returns what is left and what is right of the cut that the least ink crosses, of equals nearest the middle."""
    ink = light.amax(1)
    crossing = torch.minimum(ink[..., :-1], ink[..., 1:]).sum(1)
    cuts = torch.tensor(sorted(CUTS, key=lambda cut: abs(cut - SIDE // 2)), device=light.device)
    # A little for the distance from the middle, so that of near-equals the nearest is taken.
    cost = crossing[:, cuts - 1] + 1e-3 * (cuts - SIDE // 2).abs()
    cut = cuts[cost.argmin(1)][:, None, None, None]
    left = torch.arange(SIDE, device=light.device) < cut
    return torch.stack([light * left, light * ~left])


def _boxes(
    things: Float32[Tensor, "m 3 h w"],
) -> tuple[Int64[Tensor, "m 4"], Bool[Tensor, " m"]]:
    """Returns the box of each thing's ink, and whether it has the size of a digit.

    A box is the first row, the row after the last, the first column and the one after the last.
    """
    ink = things.amax(1) > INK
    sides = [_span(ink.any(axis)) for axis in (2, 1)]
    boxes = torch.stack([*sides[0], *sides[1]], dim=1)
    longer = torch.maximum(boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2])
    return boxes, (longer >= LEAST) & (longer <= MOST) & ink.any(2).any(1)


def _span(ink: Bool[Tensor, "m side"]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """Returns the first line with ink and the one after the last."""
    marks = ink.to(torch.int64)
    return marks.argmax(1), ink.shape[1] - marks.flip(1).argmax(1)


def _colours(things: Float32[Tensor, "m 3 h w"]) -> Int64[Tensor, " m"]:
    """Returns the position of each thing's colour in `COLOURS`, or −1 if it has none of them."""
    ink = things.amax(1, keepdim=True)
    mean = (things * (ink > INK)).sum((2, 3))
    share = mean / mean.amax(1, keepdim=True).clamp_min(1e-9)
    palette = torch.tensor(list(COLOURS.values()), device=things.device)
    same = ((share >= BRIGHT)[:, None] == (palette > 0)).all(2)
    # How far each pixel's light is from that of its own brightness in the thing's colour.
    nearest = same.to(torch.int64).argmax(1)
    pure = palette[nearest].to(things.dtype)[:, :, None, None] * ink
    off = ((things - pure).abs().amax(1, keepdim=True) * (ink > INK)).sum((1, 2, 3))
    off = off / (ink * (ink > INK)).sum((1, 2, 3)).clamp_min(1e-9)
    return torch.where(same.any(1) & (off <= IMPURE), nearest, -1)


def _digits(ink: Float32[Tensor, "m h w"], boxes: Int64[Tensor, "m 4"]) -> Int64[Tensor, " m"]:
    """Returns what the digit classifier takes each crop for, or −1 where nothing has even odds."""
    top, bottom, left, right = boxes.to(ink.dtype).unbind(1)
    # The scale at which the longer side has 20 pixels.
    scale = torch.maximum(bottom - top, right - left) / MNIST_INK
    rows, columns = (torch.arange(SIDE, device=ink.device, dtype=ink.dtype) for _ in range(2))
    inside = (rows >= top[:, None]) & (rows < bottom[:, None])
    inside = inside[:, :, None] & ((columns >= left[:, None]) & (columns < right[:, None]))[:, None]
    crop = ink * inside
    mass = crop.sum((1, 2)).clamp_min(1e-9)
    middle = [(crop.sum(2) * rows).sum(1) / mass, (crop.sum(1) * columns).sum(1) / mass]
    # Pixel i of the new picture shows the old one at middle + (i − 13.5) · scale.
    new = (torch.arange(28, device=ink.device, dtype=ink.dtype) - 13.5) * scale[:, None]
    y, x = ((new + m[:, None] + 0.5) / SIDE * 2 - 1 for m in middle)
    grid = torch.stack([x[:, None, :].expand(-1, 28, -1), y[:, :, None].expand(-1, -1, 28)], dim=3)
    large = F.grid_sample(crop[:, None], grid, mode="bicubic", align_corners=False)
    large = large / large.amax((2, 3), keepdim=True).clamp_min(1e-9)
    likely, digit = digit_probabilities(large.clamp(0, 1) * 2 - 1).max(1)
    return torch.where(likely >= 0.5, digit, -1)
