"""Captioned scenes: two real handwritten digits, coloured and placed as a caption says.

    a red three left of a blue seven

A scene is a colour picture of 32×32 pixels on black ground and a caption of this one form. Captions leave no doubt
about the picture, and a picture none about its captions but for the order in which the two things are named: "a red
three left of a blue seven" and "a blue seven right of a red three" are the same picture. So whether a model that is
told the caption has drawn what it says can be checked (`companion.metrics.scene_oracle`), and chance is known.

**How a picture is made.** Each digit is cropped to its ink and shrunk so that its longer side is 14 or 15 pixels; every
pixel is the mean of the part of the digit that it covers, and the brightest is then made 255. The picture has two
halves, side by side for "left of" and "right of", one above the other for "above" and "below"; each holds one digit.
Along the line through both halves a digit moves by 1 pixel at most, across it by 7. The grey values are those of one or
two of red, green and blue. All this is arithmetic of whole numbers, so that a scene is the same, byte by byte, on every
machine.

**What is held out.** Of the 60 pairs of a colour and a digit, 12 (`HELD_OUT_PAIRS`) are in no training scene: each
digit is held out in one or two of the six colours, each colour in two of the ten digits. There are three splits:

| split | digits | pairs |
|---|---|---|
| `train` | none of the book's 1,000 held-out ones | those that are not held out |
| `test` | the 1,000 held-out ones | those that are not held out |
| `composition` | the 1,000 held-out ones | the first, the second or both things are a held-out pair |

So `test` asks for new handwriting, and `composition` for what a model has never seen together.

>>> from companion.data.scenes import parse, scenes
>>> some = scenes("train", 64, seed=0)           # uint8 "64 3 32 32" with 64 captions
>>> parse("a red three left of a blue seven").first
Thing(colour='red', digit=3)
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8

from companion import checks
from companion.data.digits import is_held_out, load_digits
from companion.data.images import CaptionedImages, ImageDataset
from companion.data.sources import DIGITS, SCENE_SPLITS
from companion.errors import unknown_name

Words = Int64[np.ndarray, " n"]
# Draws a whole number below a bound for each scene; the bounds may differ.
Below = Callable[[int | Words], Words]

SIDE = 32
# Corners of the RGB cube: 60° of hue or more apart, so that a colour survives a lossy reconstruction.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}

# Pixels of a digit's longer side, and of the square that it is placed by.
SIZES = (14, 15)
STAMP = SIZES[-1]
# Where that square begins along the line through both halves (in its half), and across it.
ALONG = (0, 1)
ACROSS = (5, 12)
# Random words of a scene: 11 are used, and the generator makes them by fours.
WORDS = 12
# Scenes drawn at a time; only the memory depends on it.
CHUNK = 4096


@dataclass(frozen=True)
class Thing:
    """A coloured digit.

    Attributes:
        colour: one of `COLOURS`.
        digit: 0…9.

    Raises:
        ValueError: for another colour or digit.
    """

    colour: str
    digit: int

    def __post_init__(self) -> None:
        checks.one_of(COLOURS, colour=self.colour)
        checks.whole(0, 9, digit=self.digit)

    def __str__(self) -> str:
        return f"{self.colour} {DIGITS[self.digit]}"


HELD_OUT_PAIRS: frozenset[Thing] = frozenset(
    [Thing(tuple(COLOURS)[digit % 6], digit) for digit in range(10)]
    + [Thing("magenta", 0), Thing("cyan", 1)]
)


@dataclass(frozen=True)
class Scene:
    """What a caption says: two things, and where the first is, seen from the second.

    Attributes:
        first: the thing that the caption names first.
        relation: one of `RELATIONS`.
        second: the other thing.

    Raises:
        ValueError: for another relation.
    """

    first: Thing
    relation: str
    second: Thing

    def __post_init__(self) -> None:
        checks.one_of(RELATIONS, relation=self.relation)

    def caption(self) -> str:
        """Returns the caption, such as "a red three left of a blue seven"; `parse` inverts it."""
        return f"a {self.first} {self.relation} a {self.second}"

    def reversed(self) -> "Scene":
        """Returns the same picture in other words: the second thing is named first."""
        return Scene(self.second, OPPOSITE[self.relation], self.first)

    def canonical(self) -> "Scene":
        """Returns the same picture in words that name the left or upper thing first."""
        return self if self.relation in ("left of", "above") else self.reversed()


def parse(caption: str) -> Scene:
    """Returns the scene that a caption describes; `Scene.caption` inverts it.

    Capitals and the number of spaces do not matter.

    Raises:
        ValueError: if it is no caption of a scene; where one word is unknown, the nearest known one is named.
    """
    words = caption.lower().split()
    of = ["of"] if len(words) == 8 else []
    if len(words) != 7 + len(of) or words[0] != "a" or words[4:-3] != of or words[-3] != "a":
        raise ValueError(
            f"{caption!r} is no caption of a scene. One reads 'a red three left of a blue seven': a colour, a digit "
            f"in words, one of {', '.join(map(repr, RELATIONS))}, and a second colour and digit."
        )
    known = {name.split()[0]: name for name in RELATIONS if ("of" in name) == bool(of)}
    if words[3] not in known:
        raise unknown_name("relation", " ".join(words[3:-3]), RELATIONS)
    return Scene(_thing(*words[1:3]), known[words[3]], _thing(*words[-2:]))


def _thing(colour: str, digit: str) -> Thing:
    if colour not in COLOURS:
        raise unknown_name("colour", colour, COLOURS)
    if digit not in DIGITS:
        raise unknown_name("digit", digit, DIGITS)
    return Thing(colour, DIGITS.index(digit))


def scenes(
    split: str,
    count: int,
    seed: int = 0,
    *,
    start: int = 0,
    digits: ImageDataset | None = None,
) -> CaptionedImages:
    """Makes scenes; scene i is a function of the seed, i, the split and the digits alone.

    Relations, pairs of colour and digit, the images of a digit, their sizes and places are uniform and independent,
    within what the split allows (see the module). Of a scene of "composition" the first thing, the second, or both are
    a held-out pair, each with probability 1/3.

    Args:
        split: "train", "test" or "composition".
        count: number of scenes.
        seed: which ones.
        start: number of the first: scenes 100 … 149 are `scenes(split, 50, start=100)`.
        digits: handwritten digits to use; by default the 4,000 embedded ones for "train", and the 1,000 held-out ones
            otherwise.

    Returns:
        The scenes and their captions. A label is the digit of the left or upper thing.

    Raises:
        ValueError: for an unknown split, no scenes, or digits that are of another kind, lack a class, have an image
            without ink, or are held out although the scenes are to train on.
    """
    if split not in SCENE_SPLITS:
        raise unknown_name("split", split, SCENE_SPLITS)
    checks.whole(1, count=count)
    checks.whole(0, start=start)
    if digits is None:
        digits = load_digits("train" if split == "train" else "test")
    else:
        _require_digits(digits, split)
    plan = draw_plan(split, count, seed, digits.labels.cpu().numpy(), start=start)
    used, place = np.unique(np.concatenate(plan.image), return_inverse=True)
    plan = replace(plan, image=(place[:count], place[count:]))
    stamps = _stamps(digits.images[:, 0].cpu().numpy()[used])
    images = np.empty((count, 3, SIDE, SIDE), dtype=np.uint8)
    for begin in range(0, count, CHUNK):
        rows = slice(begin, begin + CHUNK)
        images[rows] = _render(plan.rows(rows), stamps)
    captions = plan.captions()
    left_or_upper = np.where(plan.relation % 2 == 0, plan.digit[0], plan.digit[1])
    return CaptionedImages(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(left_or_upper),
        classes=DIGITS,
        name="scenes",
        split=split,
        captions=captions,
    )


def _require_digits(digits: ImageDataset, split: str) -> None:
    if digits.kind != "digits":
        raise ValueError(
            f'scenes are made of handwritten digits, but {digits.name!r} has the kind "{digits.kind}".'
        )
    missing = sorted(set(range(10)) - set(digits.labels.tolist()))
    if missing:
        raise ValueError(f"scenes need images of all ten digits; there is no {missing[0]}.")
    if not digits.images.flatten(1).any(1).all():
        raise ValueError(f"scenes are made of digits, but an image of {digits.name!r} has no ink.")
    if split == "train" and (held_out := int(is_held_out(digits.images).sum())):
        raise ValueError(
            f"scenes to train on must have none of the book's held-out digits, but {held_out} of {digits.name!r} are: "
            "pass digits[~is_held_out(digits.images)]."
        )


# --- What is drawn -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plan:
    """What was drawn for each of n scenes; a pair of arrays is for the first and the second thing.

    Attributes:
        relation: position in `RELATIONS`.
        colour: position in `COLOURS`.
        digit: 0…9.
        image: which of the given images of digits it is.
        size: position in `SIZES`.
        corner: row and column, "n 2", of the upper left pixel of the square of side `STAMP` around it.
    """

    relation: Words
    colour: tuple[Words, Words]
    digit: tuple[Words, Words]
    image: tuple[Words, Words]
    size: tuple[Words, Words]
    corner: tuple[Int64[np.ndarray, "n 2"], Int64[np.ndarray, "n 2"]]

    def rows(self, chosen: slice) -> "Plan":
        """Returns what was drawn for some of the scenes."""
        pairs = (self.colour, self.digit, self.image, self.size, self.corner)
        return Plan(self.relation[chosen], *((a[chosen], b[chosen]) for a, b in pairs))

    def captions(self) -> tuple[str, ...]:
        """Returns the caption of each scene; equal ones are one object, which saves memory."""
        things = [[Thing(colour, digit) for digit in range(10)] for colour in COLOURS]
        known: dict[tuple[int, ...], str] = {}
        found = []
        rows = np.stack(
            [self.colour[0], self.digit[0], self.relation, self.colour[1], self.digit[1]], axis=1
        )
        for a, b, relation, c, d in map(tuple, rows.tolist()):
            key = (a, b, relation, c, d)
            if key not in known:
                scene = Scene(things[a][b], RELATIONS[relation], things[c][d])
                known[key] = scene.caption()
            found.append(known[key])
        return tuple(found)


def draw_plan(
    split: str, count: int, seed: int, labels: Int64[np.ndarray, " images"], *, start: int = 0
) -> Plan:
    """Draws scenes `start` … `start + count` − 1, of images of digits with these labels; the rest as for `scenes`."""
    words = iter(_words(split, count, seed, start).T)

    def below(high: int | Words) -> Words:
        """Returns a number below `high` of each scene: the upper half of the product with a word of 32 bits."""
        return ((next(words) * np.asarray(high, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)

    relation = below(len(RELATIONS))
    # Of a scene for composition: 0, only the first thing is a held-out pair; 1, only the second; 2, both.
    which = below(3)
    pairs = [
        _pairs(below, np.isin(which, (thing, 2)) & (split == "composition")) for thing in (0, 1)
    ]
    images = [_images(below, labels, digit) for _, digit in pairs]
    sizes = [below(len(SIZES)) for _ in pairs]
    along = [ALONG[0] + below(ALONG[1] - ALONG[0] + 1) for _ in pairs]
    across = [ACROSS[0] + below(ACROSS[1] - ACROSS[0] + 1) for _ in pairs]
    # "Left of" and "above" put the first thing into the first half.
    later = relation % 2 == 1
    along = [along[0] + SIDE // 2 * later, along[1] + SIDE // 2 * ~later]
    beside = (relation < 2)[:, None]
    corners = [
        np.where(beside, np.stack([b, a], axis=1), np.stack([a, b], axis=1))
        for a, b in zip(along, across, strict=True)
    ]
    return Plan(
        relation=relation,
        colour=(pairs[0][0], pairs[1][0]),
        digit=(pairs[0][1], pairs[1][1]),
        image=(images[0], images[1]),
        size=(sizes[0], sizes[1]),
        corner=(corners[0], corners[1]),
    )


def _words(split: str, count: int, seed: int, start: int) -> np.ndarray:
    """Returns `WORDS` random numbers of 32 bits a scene, as uint64 "n words".

    Philox (Salmon et al. 2011) is a function of a key and of a counter, so scene i has its own numbers wherever one
    begins to draw; `tests/data/test_scenes.py` holds them against its definition.
    """
    text = repr(("scenes", split, int(seed)))
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    generator = np.random.Philox(key=key, counter=start * (WORDS // 4))
    return generator.random_raw((count, WORDS)) >> np.uint64(32)


def _pairs(below: Below, held_out: Bool[np.ndarray, " n"]) -> tuple[Words, Words]:
    """Returns the colour and the digit of one thing of each scene: a held-out pair where that is asked for."""
    pairs = [(colour, digit) for colour in range(len(COLOURS)) for digit in range(10)]
    names = tuple(COLOURS)
    kept = [(c, d) for c, d in pairs if Thing(names[c], d) in HELD_OUT_PAIRS]
    seen = [pair for pair in pairs if pair not in kept]
    number = below(np.where(held_out, len(kept), len(seen))) + len(seen) * held_out
    chosen = np.array(seen + kept)[number]
    return chosen[:, 0], chosen[:, 1]


def _images(below: Below, labels: Int64[np.ndarray, " images"], digit: Words) -> Words:
    """Returns which image of its digit is taken for one thing of each scene."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=10)
    first = np.cumsum(counts) - counts
    return order[first[digit] + below(counts[digit])]


# --- How it is drawn -----------------------------------------------------------------------------------------------


def _stamps(images: UInt8[np.ndarray, "n 28 28"]) -> UInt8[np.ndarray, "sizes n s s"]:
    """Returns each digit in each size, in the middle of a square of side `STAMP`, its brightest pixel 255."""
    ink = images > 0
    spans = [_span(np.any(ink, axis=axis)) for axis in (2, 1)]
    longer = np.maximum(*(stop - start for start, stop in spans))
    result = np.empty((len(SIZES), len(images), STAMP, STAMP), dtype=np.uint8)
    for row, size in zip(result, SIZES, strict=True):
        weights = [_weights(start, stop, longer, size) for start, stop in spans]
        rows, columns = (w.astype(np.float32) for w in weights)
        for begin in range(0, len(images), CHUNK):
            part = slice(begin, begin + CHUNK)
            # Whole numbers below 2^24, whose sums and products are exact in float32.
            sums = rows[part] @ images[part].astype(np.float32) @ columns[part].transpose(0, 2, 1)
            brightest = sums.max((1, 2), keepdims=True).astype(np.int64)
            row[part] = (2 * 255 * sums.astype(np.int64) + brightest) // (2 * brightest)
    return result


def _span(ink: Bool[np.ndarray, "n side"]) -> tuple[Words, Words]:
    """Returns the first line with ink of each image, and the one after the last."""
    return ink.argmax(1), ink.shape[1] - ink[:, ::-1].argmax(1)


def _weights(
    start: Words, stop: Words, longer: Words, size: int
) -> Int64[np.ndarray, "n stamp side"]:
    """Returns how much of a source pixel each pixel of a stamp covers along one axis, in whole numbers.

    L source pixels become m = round(size · L / longer) pixels of length L/m each. In units of 1/m a source pixel has
    length m and a new one L, and the weights of a new pixel sum to L.
    """
    length = stop - start
    m = np.maximum(1, (2 * size * length + longer) // (2 * longer))
    new = np.arange(STAMP) - ((STAMP - m) // 2)[:, None]
    inside = (new >= 0) & (new < m[:, None])
    low, high = new * length[:, None], (new + 1) * length[:, None]
    old = (np.arange(28) - start[:, None]) * m[:, None]
    overlap = np.minimum(high[:, :, None], (old + m[:, None])[:, None, :])
    overlap = np.maximum(0, overlap - np.maximum(low[:, :, None], old[:, None, :]))
    return overlap * inside[:, :, None]


def _render(
    plan: Plan, stamps: UInt8[np.ndarray, "sizes digits s s"]
) -> UInt8[np.ndarray, "n 3 32 32"]:
    """Returns the pictures: each stamp at its place, in those of red, green and blue that its colour has."""
    count = len(plan.relation)
    images = np.zeros((count, 3, SIDE, SIDE), dtype=np.uint8)
    palette = np.array(list(COLOURS.values()), dtype=np.uint8)
    scene = np.arange(count)[:, None, None]
    for thing in (0, 1):
        grey = stamps[plan.size[thing], plan.image[thing]]
        corner = plan.corner[thing][:, :, None] + np.arange(STAMP)
        rows, columns = corner[:, 0, :, None], corner[:, 1, None, :]
        for channel in range(3):
            images[scene, channel, rows, columns] += (
                grey * palette[plan.colour[thing], channel][:, None, None]
            )
    return images
