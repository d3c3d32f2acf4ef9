"""Captioned scenes: two real digits in two colours on black, 32×32, "a red three left of a blue seven".

They are made on the fly: scene i is a function of the seed, the split and i alone, so ten scenes are the first ten of
a thousand. Each digit is cropped to its ink, resized with anti-aliasing until its longer side has 14 pixels, coloured,
and put into its half of the image, up to a pixel away from the middle of its place. The two never overlap.

**Three splits.** "train" uses training digits only, and 48 of the 60 pairs of a colour and a digit. "test" has the same
pairs, but digits that are held out. "composition" has held-out digits in the other 12 pairs: the first thing always,
the second in half of the scenes. Each digit is held out in one or two colours and each colour with two digits, so
every colour and every digit is learned, and only their combination is new.
"""

import hashlib
import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from companion import checks
from companion.data.digits import load_digits
from companion.data.images import CaptionedImages, ImageDataset
from companion.errors import unknown_name

SIDE = 32
# Rows and columns of a digit's place.
PLACE = 14
# A digit is moved by up to so many pixels in each direction.
JITTER = 1
# Bytes above this are ink when a digit is cropped.
INK = 30
SPLITS = ("train", "test", "composition")
SIZES = {"train": 50_000, "test": 5_000, "composition": 5_000}

# The corners of the RGB cube without black and white: each differs from each other in a whole channel.
COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Of each relation, the top left corners of the first and the second place, before they are moved.
RELATIONS = {
    "left of": ((9, 1), (9, 17)),
    "right of": ((9, 17), (9, 1)),
    "above": ((1, 9), (17, 9)),
    "below": ((17, 9), (1, 9)),
}
# Numbers that a scene draws; Philox makes four at a time, so a multiple of four lets a scene start a block.
DRAWS = 12


@dataclass(frozen=True)
class Thing:
    """A coloured digit.

    Attributes:
        colour: one of `COLOURS`.
        digit: 0 … 9.

    Raises:
        ValueError: for another colour or digit.
    """

    colour: str
    digit: int

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise unknown_name("colour", self.colour, COLOURS)
        checks.whole(0, 9, digit=self.digit)

    def __str__(self) -> str:
        return f"a {self.colour} {DIGITS[self.digit]}"


@dataclass(frozen=True)
class Scene:
    """What a scene shows: where the first thing is, seen from the second.

    Attributes:
        first: the thing that is named first.
        relation: one of `RELATIONS`.
        second: the other thing.

    Raises:
        ValueError: for another relation.
    """

    first: Thing
    relation: str
    second: Thing

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise unknown_name("relation", self.relation, RELATIONS)

    def caption(self) -> str:
        """Returns the scene in words, such as "a red three left of a blue seven"."""
        return f"{self.first} {self.relation} {self.second}"


def parse(caption: str) -> Scene:
    """Returns the scene that a caption describes; `Scene.caption` inverts it.

    Capitals and the number of spaces do not matter.

    Raises:
        ValueError: for a word that is not known, with the nearest that is, or for a sentence of another form.
    """
    words = caption.lower().split()
    known = {"a", *COLOURS, *DIGITS, *" ".join(RELATIONS).split()}
    for word in words:
        if word not in known:
            raise unknown_name("word", word, known, f"The caption was {caption!r}.")
    first, relation, second = words[:3], " ".join(words[3:-3]), words[-3:]
    if relation not in RELATIONS or not _names_a_thing(first) or not _names_a_thing(second):
        raise ValueError(
            f"a caption reads 'a red three left of a blue seven', with one of {', '.join(RELATIONS)} in the middle; "
            f"got {caption!r}."
        )
    return Scene(
        Thing(first[1], DIGITS.index(first[2])), relation, Thing(second[1], DIGITS.index(second[2]))
    )


def _names_a_thing(words: list[str]) -> bool:
    return len(words) == 3 and words[0] == "a" and words[1] in COLOURS and words[2] in DIGITS


def _held_out() -> frozenset[tuple[str, int]]:
    """Every digit d in colour d mod 6, which leaves out eight of the colours' digits twice and two once."""
    names = list(COLOURS)
    pairs = {(names[digit % len(names)], digit) for digit in range(10)}
    return frozenset(pairs | {("magenta", 0), ("cyan", 1)})


# Pairs of colour and digit in no scene of "train" and "test".
HELD_OUT_PAIRS = _held_out()
ALL_PAIRS = tuple(itertools.product(COLOURS, range(10)))
SEEN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS)


@dataclass(frozen=True, eq=False)
class Layout:
    """What is where in n scenes, of which the images and captions are made.

    Attributes:
        colours: of the first and the second thing, indices into `COLOURS`.
        digits: 0 … 9, of both.
        sources: which image of the set of digits shows each.
        relations: indices into `RELATIONS`.
        corners: row and column of the top left corner of each place.
    """

    colours: Int64[Tensor, "n 2"]
    digits: Int64[Tensor, "n 2"]
    sources: Int64[Tensor, "n 2"]
    relations: Int64[Tensor, " n"]
    corners: Int64[Tensor, "n 2 2"]

    def scenes(self) -> list[Scene]:
        """Returns what each scene shows."""
        things = {pair: Thing(*pair) for pair in ALL_PAIRS}
        colours, relations = list(COLOURS), list(RELATIONS)
        rows = zip(
            self.colours.tolist(), self.digits.tolist(), self.relations.tolist(), strict=True
        )
        return [
            Scene(things[colours[c], a], relations[r], things[colours[d], b])
            for (c, d), (a, b), r in rows
        ]


def layout(
    split: str, labels: Int64[Tensor, " m"], count: int, seed: int = 0, start: int = 0
) -> Layout:
    """Draws what the scenes `start` … `start` + `count` − 1 show.

    Args:
        split: one of `SPLITS`.
        labels: 0 … 9, of the digits to choose from; each class must be there.
        count: number of scenes.
        seed: of all of them.
        start: number of the first.

    Raises:
        ValueError: for an unknown split, a bad number, or a class without digits.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    checks.whole(1, count=count)
    checks.whole(0, seed=seed, start=start)
    per_class = labels.bincount(minlength=10)
    if len(per_class) > 10 or int(per_class.min()) == 0:
        raise ValueError(
            f"scenes need digits of each class 0…9, got so many of each: {per_class.tolist()}."
        )
    u = _uniform(split, count, seed, start)
    pairs = torch.stack(
        [
            _choose(SEEN_PAIRS if split != "composition" else _HELD_OUT, u[:, 0]),
            _choose(SEEN_PAIRS, u[:, 1]),
        ],
        dim=1,
    )
    if split == "composition":
        both = u[:, 2] < 0.5
        pairs[both, 1] = _choose(_HELD_OUT, u[both, 1])
    colours, digits = pairs[..., 0], pairs[..., 1]
    # The images of a class lie side by side in this order, from `begin` on.
    order, begin = torch.argsort(labels, stable=True), per_class.cumsum(0) - per_class
    sources = order[begin[digits] + (u[:, 3:5] * per_class[digits]).long()]
    relations = (u[:, 5] * len(RELATIONS)).long()
    moved = (u[:, 6:10].reshape(-1, 2, 2) * (2 * JITTER + 1)).long() - JITTER
    corners = torch.tensor(list(RELATIONS.values()))[relations] + moved
    return Layout(colours, digits, sources, relations, corners)


_HELD_OUT = tuple(pair for pair in ALL_PAIRS if pair in HELD_OUT_PAIRS)


def _choose(pairs: tuple[tuple[str, int], ...], u: Tensor) -> Int64[Tensor, "n 2"]:
    names = list(COLOURS)
    table = torch.tensor([(names.index(colour), digit) for colour, digit in pairs])
    return table[(u * len(table)).long()]


def _uniform(split: str, count: int, seed: int, start: int) -> Tensor:
    """Draws the numbers of each scene in [0, 1), a row for each, float64.

    Philox counts: its block number k is a function of the key and k. So a scene has the same numbers whichever others
    are drawn, and all are drawn at once.
    """
    key = hashlib.sha256(repr((seed, split)).encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    philox.advance(start * DRAWS // 4)
    return torch.from_numpy(np.random.Generator(philox).random((count, DRAWS)))


def crops(images: UInt8[Tensor, "n 1 28 28"]) -> UInt8[Tensor, "n 14 14"]:
    """Cuts digits out at their ink and resizes them until the longer side fills a place; the middle is the middle."""
    ink = images[:, 0] > INK
    boxes = torch.stack([*_extent(ink.any(2)), *_extent(ink.any(1))], dim=1)
    result = torch.zeros(len(images), PLACE, PLACE, dtype=torch.uint8)
    # All digits with a box of one shape are resized at once.
    shapes = torch.stack([boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]], dim=1)
    for h, w in shapes.unique(dim=0).tolist():
        chosen = torch.nonzero((shapes == torch.tensor([h, w])).all(1))[:, 0]
        rows = boxes[chosen, 0, None] + torch.arange(h)
        columns = boxes[chosen, 2, None] + torch.arange(w)
        cut = images[chosen[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
        scale = PLACE / max(h, w)
        new = (max(1, round(h * scale)), max(1, round(w * scale)))
        resized = F.interpolate(
            cut[:, None].float(), new, mode="bilinear", antialias=True, align_corners=False
        )
        y, x = (PLACE - new[0]) // 2, (PLACE - new[1]) // 2
        result[chosen, y : y + new[0], x : x + new[1]] = resized[:, 0].round().byte()
    return result


def _extent(any_ink: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first position with ink and the one after the last; everything where there is no ink."""
    n = any_ink.shape[1]
    first = any_ink.float().argmax(1)
    stop = n - any_ink.flip(1).float().argmax(1)
    return first, stop


def render(plan: Layout, cut: UInt8[Tensor, "m 14 14"]) -> UInt8[Tensor, "n 3 32 32"]:
    """Paints the scenes of a layout.

    Args:
        plan: what is where.
        cut: the digits that its `sources` count, as `crops` returns them.
    """
    n = len(plan.relations)
    images = torch.zeros(n, 3, SIDE, SIDE, dtype=torch.uint8)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)
    scene, reach = torch.arange(n)[:, None, None, None], torch.arange(PLACE)
    for k in (0, 1):
        painted = palette[plan.colours[:, k]][:, :, None, None] * cut[plan.sources[:, k]][:, None]
        rows = (plan.corners[:, k, 0, None] + reach)[:, None, :, None]
        columns = (plan.corners[:, k, 1, None] + reach)[:, None, None, :]
        # The places are apart, so nothing is painted over.
        images[scene, torch.arange(3)[None, :, None, None], rows, columns] = painted
    return images


def scenes(
    split: str = "train",
    count: int | None = None,
    seed: int = 0,
    *,
    digits: ImageDataset | None = None,
    start: int = 0,
) -> CaptionedImages:
    """Makes captioned scenes; the label of each is the digit of its first thing.

    Args:
        split: one of `SPLITS`: which pairs of colour and digit, and by default which digits.
        count: number of scenes; 50,000 for "train" and 5,000 for the others if not given. Each takes 3 KB.
        seed: other seeds give other scenes.
        digits: what to paint, of the kind "digits"; if not given, the embedded 4,000 for "train" and the held-out 1,000
            for the others. Whoever gives full MNIST leaves the held-out ones out (`companion.data.is_held_out`).
        start: number of the first scene.

    Raises:
        ValueError: for an unknown split, a bad number, images that are no digits, or a class without digits.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if digits is not None and digits.kind != "digits":
        raise ValueError(
            f"scenes are made of handwritten digits, got {digits.name!r} of the kind {digits.kind!r}."
        )
    cut, labels = (
        _embedded("train" if split == "train" else "test")
        if digits is None
        else (crops(digits.images), digits.labels)
    )
    plan = layout(split, labels, SIZES[split] if count is None else count, seed, start)
    return CaptionedImages(
        images=render(plan, cut),
        labels=plan.digits[:, 0].clone(),
        classes=DIGITS,
        name="scenes",
        split=split,
        captions=tuple(scene.caption() for scene in plan.scenes()),
    )


@cache
def _embedded(split: str) -> tuple[Tensor, Tensor]:
    found = load_digits(split)
    return crops(found.images), found.labels
