"""A reader of captioned scenes: what stands where, in which colour, of images that a model has made.

It judges the scenes of `companion.data.scenes`. Place and colour are read by rule, the digits by the frozen classifier
"digit-cnn". A scene is read in four steps.

1. **Ink** is the largest of a pixel's three channels, between 0 (black) and 1; what is
   fainter than 0.2 is background.
2. **Halves.** Ink that is spread further along the rows than along the columns has its things side by side, otherwise
   one above the other; the image is cut in the middle across that direction.
3. **A thing** is the ink of a half. It counts if there is enough of it, if its bright pixels fit into a box little
   larger than a digit's place, and if the centres of the two are apart. Where one of the halves has no thing, nothing
   is read: in blank images, noise, scenes with a blob too many.
4. **Colour and digit.** The colour is the nearest of the six to the average of the pixels, weighted by ink. For the
   digit the ink is resized as MNIST's digits are, its centre of mass in the middle of 28×28 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from companion import checks
from companion.checkpoints import load_checkpoint
from companion.data.scenes import COLOURS, PLACE, RELATIONS, SIDE, Scene, parse
from companion.metrics.digit_cnn import DigitCNN

# Ink above this is bright: part of a digit's strokes, not of a blur around them.
BRIGHT = 0.4
# Ink below this is background, of noise or ringing, and is left out.
FAINT = 0.2
# The centres of two things lie at least so many pixels apart in their direction; real ones, 16 less what digits are
# off their places' middles. The halves of a single digit lie closer together.
APART = 10
# The least sum of ink of a thing.
LEAST_INK = 8.0
# Rows and columns that a thing's bright pixels may take.
LARGEST = PLACE + 3
# MNIST's digits are 20 pixels high or wide in an image of 28.
ZOOM = 20 / PLACE


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read in n images; the first thing is the left or the upper one.

    Attributes:
        found: whether two things were found; the rest means nothing where they were not.
        colours: of both, indices into `COLOURS`.
        digits: 0 … 9, of both.
        side_by_side: whether they stand left and right, rather than above and below.
    """

    found: Bool[Tensor, " n"]
    colours: Int64[Tensor, "n 2"]
    digits: Int64[Tensor, "n 2"]
    side_by_side: Bool[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.found)


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of n images, what agrees with their captions; nothing does where nothing was read.

    Attributes:
        place: the things stand in the caption's direction, side by side or one above the other, **and** in its order.
            The order shows by what the things are: the caption's order matches colours and digits at least as well as
            the other order does.
        colours: of the thing named first and second, at the place where the caption has it.
        digits: likewise.
    """

    place: Bool[Tensor, " n"]
    colours: Bool[Tensor, "n 2"]
    digits: Bool[Tensor, "n 2"]

    @property
    def colour(self) -> Bool[Tensor, " n"]:
        """Both colours are right."""
        return self.colours.all(1)

    @property
    def digit(self) -> Bool[Tensor, " n"]:
        """Both digits are right."""
        return self.digits.all(1)

    @property
    def all(self) -> Bool[Tensor, " n"]:
        """Place, both colours and both digits are right."""
        return self.place & self.colour & self.digit


@torch.no_grad()
def read(images: Float[Tensor, "n 3 32 32"], classifier: DigitCNN | None = None) -> Reading:
    """Reads scenes.

    Args:
        images: in [−1, 1]; what lies beyond is clamped, and NaN is black.
        classifier: reads the digits, in evaluation mode; the shipped "digit-cnn" if not given.

    Raises:
        TypeError: if the images are bytes.
        ValueError: if they are not 32×32 with three channels.
    """
    checks.images(images, 3, SIDE, "scene oracle")
    reader = _reader(images.device) if classifier is None else classifier
    x = images.float().nan_to_num(-1.0).clamp(-1, 1).add(1).div(2)
    x = torch.where(x.amax(1, keepdim=True) < FAINT, 0.0, x)
    side_by_side = _side_by_side(x.amax(1))
    # What stands one above the other is transposed, so that all are cut alike, and turned back before it is read.
    lying = torch.where(side_by_side[:, None, None, None], x, x.mT)
    middle = SIDE // 2
    found, colours, digits = [], [], []
    for half in (slice(0, middle), slice(middle, SIDE)):
        part = torch.zeros_like(lying)
        part[..., half] = lying[..., half]
        part = torch.where(side_by_side[:, None, None, None], part, part.mT)
        ink = part.amax(1)
        found.append(_is_a_thing(ink))
        colours.append(_colour(part, ink))
        digits.append(_digit(ink, reader))
    return Reading(
        found=torch.stack(found, 1).all(1) & _apart(lying.amax(1)),
        colours=torch.stack(colours, 1),
        digits=torch.stack(digits, 1),
        side_by_side=side_by_side,
    )


def agreement(captions: Sequence[Scene | str], reading: Reading) -> Agreement:
    """Compares what was read with what should be there.

    "A left of b" and "b right of a" are the same scene, and are compared as the same.

    Raises:
        ValueError: for a caption that is none, or another number of captions than of images.
    """
    if len(captions) != len(reading):
        raise ValueError(f"{len(reading)} images need as many captions, got {len(captions)}.")
    names, device = list(COLOURS), reading.found.device
    told = [parse(c) if isinstance(c, str) else c for c in captions]
    colours = torch.tensor(
        [[names.index(t.colour) for t in (s.first, s.second)] for s in told], device=device
    )
    digits = torch.tensor([[t.digit for t in (s.first, s.second)] for s in told], device=device)
    relation = torch.tensor([list(RELATIONS).index(s.relation) for s in told], device=device)
    # Relations come in pairs: 0 and 1 are side by side, 0 and 2 have the first thing at the left or above.
    direction = (relation < 2) == reading.side_by_side
    in_order = (relation % 2 == 0)[:, None]
    read_colours = torch.where(in_order, reading.colours, reading.colours.flip(1))
    read_digits = torch.where(in_order, reading.digits, reading.digits.flip(1))
    right_colours, right_digits = read_colours == colours, read_digits == digits
    matches = right_colours.sum(1) + right_digits.sum(1)
    swapped = (read_colours.flip(1) == colours).sum(1) + (read_digits.flip(1) == digits).sum(1)
    found = reading.found
    return Agreement(
        place=found & direction & (matches >= swapped),
        colours=found[:, None] & right_colours,
        digits=found[:, None] & right_digits,
    )


def accuracies(
    images: Float[Tensor, "n 3 32 32"],
    captions: Sequence[Scene | str],
    classifier: DigitCNN | None = None,
) -> dict[str, float]:
    """Returns the shares of scenes, between 0 and 1, that agree with their captions.

    An image in which no two things are found counts as wrong everywhere.

    Returns:
        "colour": both colours are right, each at its thing's place. "place": direction and order are right
        (`Agreement.place`). "digit": of all 2n things, those whose digit is right. "both digits": both are right.
        "all": place, colours and digits are right.

    Raises:
        TypeError, ValueError: as from `read` and `agreement`, and for no images.
    """
    if not len(images):
        raise ValueError("accuracies need at least one image, got none.")
    agreed = agreement(captions, read(images, classifier))
    shares = {
        "colour": agreed.colour,
        "place": agreed.place,
        "digit": agreed.digits,
        "both digits": agreed.digit,
        "all": agreed.all,
    }
    return {name: float(right.double().mean()) for name, right in shares.items()}


def _reader(device: torch.device) -> DigitCNN:
    found = load_checkpoint("digit-cnn", device)
    assert isinstance(found, DigitCNN)
    return found


def _side_by_side(ink: Float[Tensor, "n h w"]) -> Bool[Tensor, " n"]:
    """Says whether ink is spread further along the rows, by its variance, than along the columns."""
    at = torch.arange(SIDE, device=ink.device, dtype=ink.dtype)

    def spread(along: Tensor) -> Tensor:
        share = along / along.sum(1, keepdim=True).clamp(min=1e-6)
        mean = (share * at).sum(1, keepdim=True)
        return (share * (at - mean) ** 2).sum(1)

    return spread(ink.sum(1)) > spread(ink.sum(2))


def _apart(lying: Float[Tensor, "n h w"]) -> Bool[Tensor, " n"]:
    """Says whether the centres of mass of the left and the right half are further apart than those of one thing."""
    along, at = lying.sum(1), torch.arange(SIDE, device=lying.device, dtype=lying.dtype)
    left, right = (
        (part * where).sum(1) / part.sum(1).clamp(min=1e-6)
        for part, where in zip(along.split(SIDE // 2, 1), at.split(SIDE // 2), strict=True)
    )
    return right - left >= APART


def _is_a_thing(ink: Float[Tensor, "n h w"]) -> Bool[Tensor, " n"]:
    """Says whether there is enough ink, and its bright pixels fit into a box of a digit's size."""
    bright = ink > BRIGHT
    small = torch.ones(len(ink), dtype=torch.bool, device=ink.device)
    for along in (bright.any(1), bright.any(2)):
        first = along.float().argmax(1)
        last = SIDE - 1 - along.flip(1).float().argmax(1)
        small &= along.any(1) & (last - first < LARGEST)
    return small & (ink.sum((1, 2)) >= LEAST_INK)


def _colour(part: Float[Tensor, "n 3 h w"], ink: Float[Tensor, "n h w"]) -> Int64[Tensor, " n"]:
    """Returns the colour nearest to the average pixel, weighted by ink and brightened until a channel is full."""
    mean = (part * ink[:, None]).sum((2, 3))
    mean = mean / mean.amax(1, keepdim=True).clamp(min=1e-6)
    palette = torch.tensor(list(COLOURS.values()), dtype=mean.dtype, device=mean.device)
    return torch.cdist(mean, palette).argmin(1)


def _digit(ink: Float[Tensor, "n h w"], classifier: DigitCNN) -> Int64[Tensor, " n"]:
    """Returns the class of a digit that is shown as MNIST's are, 20 pixels large about its centre of mass."""
    at = torch.arange(SIDE, device=ink.device, dtype=ink.dtype)
    total = ink.sum((1, 2)).clamp(min=1e-6)
    y, x = (ink.sum(2) * at).sum(1) / total, (ink.sum(1) * at).sum(1) / total
    reach = (torch.arange(28, device=ink.device, dtype=ink.dtype) - 14) / ZOOM
    # `grid_sample` counts from −1 to 1 between the outer edges of the image.
    rows = (2 * (y[:, None] + reach) + 1) / SIDE - 1
    columns = (2 * (x[:, None] + reach) + 1) / SIDE - 1
    grid = torch.stack(
        [columns[:, None, :].expand(-1, 28, -1), rows[:, :, None].expand(-1, -1, 28)], dim=-1
    )
    large = F.grid_sample(ink[:, None], grid, mode="bicubic", align_corners=False).clamp(0, 1)
    return torch.cat([classifier(part).argmax(1) for part in (large * 2 - 1).split(256)])
