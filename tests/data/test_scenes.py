"""Captioned scenes: what a caption says is what the picture shows, and what is held out stays out."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion import data
from companion.data.digits import is_held_out
from companion.data.images import CaptionedImages
from companion.data.scenes import (
    COLOURS,
    DIGITS,
    HELD_OUT_PAIRS,
    OPPOSITE,
    RELATIONS,
    SCENE_SPLITS,
    SIZES,
    Scene,
    Thing,
    _stamps,
    _words,
    draw_plan,
    parse,
    scenes,
)

THINGS = [Thing(colour, digit) for colour in COLOURS for digit in range(10)]


@pytest.fixture(scope="module")
def some():
    """Scenes of each split, with what was drawn for them."""
    found = {}
    for split in SCENE_SPLITS:
        digits = data.load("digits", "train" if split == "train" else "test")
        plan = draw_plan(split, 1000, 5, digits.labels.numpy())
        found[split] = scenes(split, 1000, 5), plan, digits
    return found


# --- Captions -------------------------------------------------------------------------------------------------------


def test_captions_read_back():
    # Every thing in every relation to a tenth of the others, named first and named second.
    some = [Scene(a, r, b) for a in THINGS for r in RELATIONS for b in THINGS[::7]]
    everything = {*some, *(scene.reversed() for scene in some)}
    captions = {scene.caption(): scene for scene in everything}
    assert len(captions) == len(everything) > 3500
    assert all(parse(caption) == scene for caption, scene in captions.items())


def test_the_book_s_caption():
    scene = parse("a red three left of a blue seven")
    assert scene == Scene(Thing("red", 3), "left of", Thing("blue", 7))
    assert scene.caption() == "a red three left of a blue seven"
    assert parse("  A Red three  LEFT of a blue seven ") == scene
    assert scene.reversed().caption() == "a blue seven right of a red three"
    assert scene.canonical() == scene.reversed().canonical() == scene


@given(
    first=st.sampled_from(THINGS),
    relation=st.sampled_from(RELATIONS),
    second=st.sampled_from(THINGS),
)
def test_a_picture_has_two_captions_and_one_canonical_one(first, relation, second):
    scene = Scene(first, relation, second)
    assert scene.reversed().reversed() == scene
    assert scene.reversed().relation == OPPOSITE[relation]
    assert scene.canonical() == scene.reversed().canonical()
    assert scene.canonical().relation in ("left of", "above")


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a read three left of a blue seven", "unknown colour 'read'. Did you mean 'red'?"),
        ("a red three left of a blue sevn", "unknown digit 'sevn'. Did you mean 'seven'?"),
        ("a red three abve a blue seven", "unknown relation 'abve'. Did you mean 'above'?"),
        ("a red three lefft of a blue seven", "Did you mean 'left of'?"),
        ("a red three above of a blue seven", "unknown relation 'above of'"),
        ("a red three left a blue seven", "unknown relation 'left'"),
        ("a red three", "no caption of a scene"),
        ("a red three left of the blue seven", "no caption of a scene"),
        ("", "no caption of a scene"),
    ],
)
def test_what_is_no_caption_is_refused(caption, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(caption)


@given(st.lists(st.sampled_from(["a", "red", "three", "left", "of", "above", "rad"]), max_size=9))
def test_any_words_are_a_caption_or_a_clear_error(words):
    try:
        scene = parse(" ".join(words))
    except ValueError:
        return
    assert scene.caption() == " ".join(words)


def test_a_thing_or_scene_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="colour"):
        Thing("pink", 3)
    with pytest.raises(ValueError, match="digit"):
        Thing("red", 10)
    with pytest.raises(ValueError, match="relation"):
        Scene(Thing("red", 3), "beside", Thing("red", 3))


# --- What is held out -----------------------------------------------------------------------------------------------


def test_held_out_pairs_are_balanced():
    assert len(HELD_OUT_PAIRS) == 12
    assert set(Counter(pair.digit for pair in HELD_OUT_PAIRS).values()) <= {1, 2}
    assert len({pair.digit for pair in HELD_OUT_PAIRS}) == 10
    assert Counter(pair.colour for pair in HELD_OUT_PAIRS) == dict.fromkeys(COLOURS, 2)


def test_no_held_out_pair_but_in_composition(some):
    held_out = {
        split: [
            tuple(t in HELD_OUT_PAIRS for t in (s.first, s.second))
            for s in map(parse, images.captions)
        ]
        for split, (images, _, _) in some.items()
    }
    assert set(held_out["train"]) == set(held_out["test"]) == {(False, False)}
    counts = Counter(held_out["composition"])
    assert set(counts) == {(True, False), (False, True), (True, True)}
    # 333 of each expected, with a standard deviation of 15.
    assert all(abs(count - 333) < 60 for count in counts.values())
    seen = [t for s in map(parse, some["train"][0].captions) for t in (s.first, s.second)]
    # All 48 others, 42 times each on average.
    assert set(seen) == set(THINGS) - HELD_OUT_PAIRS
    assert min(Counter(seen).values()) > 15


def test_digits_of_train_scenes_are_never_held_out(some):
    _, plan, digits = some["train"]
    for image in plan.image:
        assert not is_held_out(digits.images[image]).any()
    for split in ("test", "composition"):
        _, plan, digits = some[split]
        used = np.concatenate(plan.image)
        assert is_held_out(digits.images[used]).all()
        assert len(set(used.tolist())) > 750


def test_held_out_digits_cannot_be_trained_on():
    everything = data.load("digits", "test")
    with pytest.raises(ValueError, match=r"digits\[~is_held_out\(digits.images\)\]"):
        scenes("train", 4, digits=everything)


# --- Pictures -------------------------------------------------------------------------------------------------------


def test_the_relation_and_the_colours_are_true_of_the_pixels(some):
    for images, _, _ in some.values():
        canonical = [parse(c).canonical() for c in images.captions]
        beside = torch.tensor([s.relation == "left of" for s in canonical])
        pixels = images.images
        halves = [pixels[..., :16], pixels[..., 16:]], [pixels[..., :16, :], pixels[..., 16:, :]]
        for half, thing in enumerate(("first", "second")):
            for relation, mine in ((0, beside), (1, ~beside)):
                brightest = halves[relation][half][mine].amax((2, 3))
                wanted = [
                    COLOURS[getattr(s, thing).colour]
                    for s, here in zip(canonical, mine.tolist(), strict=True)
                    if here
                ]
                assert torch.equal(brightest, 255 * torch.tensor(wanted, dtype=torch.uint8))
        assert images.labels.tolist() == [s.first.digit for s in canonical]


def shrunk(digit, size):
    """The crop to the ink, each pixel repeated m times, and means of L of these: L pixels become m."""
    rows, columns = torch.nonzero(digit, as_tuple=True)
    crop = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].double()
    h, w = (max(1, int(size * side / max(crop.shape) + 0.5)) for side in crop.shape)
    fine = crop.repeat_interleave(h, 0).repeat_interleave(w, 1)
    means = fine.reshape(h, crop.shape[0], w, crop.shape[1]).mean((1, 3))
    return means * 255 / means.max()


def test_pictures_are_those_of_one_digit_after_the_other(some):
    images, plan, digits = some["test"]
    for i in range(100):
        scene = parse(images.captions[i])
        picture = torch.zeros(3, 32, 32, dtype=torch.float64)
        for k, thing in enumerate((scene.first, scene.second)):
            assert digits.labels[plan.image[k][i]] == thing.digit
            grey = shrunk(digits.images[plan.image[k][i], 0], SIZES[plan.size[k][i]])
            (h, w), (top, left) = grey.shape, plan.corner[k][i].tolist()
            top, left = top + (15 - h) // 2, left + (15 - w) // 2
            colour = torch.tensor(COLOURS[thing.colour])[:, None, None]
            picture[:, top : top + h, left : left + w] += colour * grey
        assert (images.images[i] - picture).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("size", [0, 1])
def test_the_longer_side_of_every_digit_is_the_size(size):
    stamps = _stamps(data.load("digits", "test").images[:, 0].numpy())[size]
    sides = np.stack([(stamps > 0).any(axis).sum(1) for axis in (1, 2)])
    assert (stamps.max((1, 2)) == 255).all()
    assert (sides.max(0) == SIZES[size]).mean() > 0.97  # faint edges may vanish
    assert sides.max() <= SIZES[size]


# --- Numbers --------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    split=st.sampled_from(SCENE_SPLITS),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 10_000),
    count=st.integers(1, 20),
    data_=st.data(),
)
def test_a_scene_is_a_function_of_its_number(split, seed, start, count, data_):
    i = data_.draw(st.integers(0, count - 1))
    many, one = scenes(split, count, seed, start=start), scenes(split, 1, seed, start=start + i)
    assert torch.equal(many.images[i], one.images[0])
    assert many.captions[i] == one.captions[0]
    assert many.labels[i] == one.labels[0]


def test_chunks_do_not_matter(monkeypatch):
    whole = scenes("train", 50)
    monkeypatch.setattr("companion.data.scenes.CHUNK", 7)
    assert scenes("train", 50).sha256 == whole.sha256


def test_other_seeds_and_splits_give_other_scenes():
    found = {scenes(split, 20, seed).sha256 for split in SCENE_SPLITS for seed in (0, 1)}
    assert len(found) == 6


def test_random_words_are_those_of_philox():
    """Philox 4×64 with 10 rounds, by its definition (Salmon et al. 2011, section 3.3)."""
    import hashlib

    mask = 2**64 - 1
    key = int.from_bytes(
        hashlib.sha256(repr(("scenes", "test", 3)).encode()).digest()[:16], "little"
    )

    def block(counter):
        x, k = [(counter >> 64 * j) & mask for j in range(4)], [key & mask, key >> 64]
        for _ in range(10):
            a, b = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
            x = [(b >> 64) ^ x[1] ^ k[0], b & mask, (a >> 64) ^ x[3] ^ k[1], a & mask]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        return x

    # NumPy counts up before it makes a block.
    wanted = [[w >> 32 for j in range(3) for w in block(3 * i + j + 1)] for i in (41, 42)]
    assert _words("test", 2, 3, 41).tolist() == wanted


def test_what_is_drawn_is_uniform(some):
    _, plan, _ = some["train"]
    # Chi-square of 1,000 draws; the bounds are exceeded with probability 1e-4.
    assert _chi2(plan.relation, 4) < 21.2
    assert all(_chi2(size, 2) < 15.2 for size in plan.size)
    along = [np.where(plan.relation < 2, c[:, 1], c[:, 0]) for c in plan.corner]
    across = [np.where(plan.relation < 2, c[:, 0], c[:, 1]) for c in plan.corner]
    assert all(_chi2(c % 16, 2) < 15.2 for c in along)
    assert all(_chi2(c - 5, 8) < 29.9 for c in across)
    assert not (np.abs(np.corrcoef(np.stack([*plan.digit, *plan.colour, *across]))) > 0.15)[
        np.triu_indices(6, 1)
    ].any()


def _chi2(values, cells):
    counts = np.bincount(values, minlength=cells)
    assert len(counts) == cells
    return ((counts - len(values) / cells) ** 2).sum() / (len(values) / cells)


# --- The data sets --------------------------------------------------------------------------------------------------


def test_scenes_by_name():
    test, composition = data.load("scenes", "test"), data.load("scenes", "composition")
    assert test.sha256 == scenes("test", 2000).sha256
    assert composition.sha256 == scenes("composition", 2000).sha256
    for images in (test, composition):
        assert images.images.shape == (2000, 3, 32, 32)
        assert (images.name, images.kind, images.classes) == ("scenes", "images", DIGITS)
    with pytest.raises(ValueError, match="Known: composition, test, train"):
        data.load("scenes", "valid")
    with pytest.raises(ValueError, match="unknown split 'composition'"):
        data.load("digits", "composition")


def test_the_scenes_are_pinned():
    # Changing these changes every number of the chapters on captions.
    assert (
        scenes("train", 1000).sha256
        == "053e31d6bc77a5eea2d3de32bc394bb69931bcdd2c26fc113c87a5edce95f8a1"
    )
    assert (
        data.load("scenes", "test").sha256
        == "2e129af022e090668612cfb85caf517e60b57f486a62b3ad964148b187326aaa"
    )


def test_a_scene_takes_three_kilobytes_and_equal_captions_are_one_string():
    test = data.load("scenes", "test")
    assert test.images.nbytes == len(test) * 3 * 32 * 32
    many = scenes("train", 3000)
    assert len({id(c) for c in many.captions}) == len(set(many.captions)) <= 48 * 4 * 48


def test_scenes_of_other_digits(monkeypatch):
    """`mnist_scenes` takes MNIST without the held-out digits; here the 5,000 embedded ones stand for MNIST."""
    from companion.data import catalogue

    train, test = data.load("digits"), data.load("digits", "test")
    whole = replace(train, images=torch.cat([train.images, test.images]),
                    labels=torch.cat([train.labels, test.labels]), name="mnist")  # fmt: skip
    real = catalogue.load
    monkeypatch.setattr(
        catalogue, "load", lambda name, *a, **k: whole if name == "mnist" else real(name, *a, **k)
    )
    monkeypatch.setattr(catalogue, "MNIST_SCENES", 300)
    found = real("mnist_scenes")
    assert (found.name, len(found)) == ("mnist_scenes", 300)
    assert torch.equal(found.images, scenes("train", 300, digits=train).images)
    assert torch.equal(real("mnist_scenes", "test").images, real("scenes", "test").images)


def test_captions_go_with_their_images():
    ten = scenes("test", 10)
    assert isinstance(ten, CaptionedImages)
    chosen = ten[[7, 2]]
    assert chosen.captions == (ten.captions[7], ten.captions[2])
    batch = ten.batch([7, 2])
    assert batch.captions == chosen.captions
    assert torch.equal(batch.images, chosen.floats())
    shuffled = ten.shuffled(torch.Generator().manual_seed(0))
    truth = dict(zip(ten.captions, ten.images, strict=True))
    assert all(
        torch.equal(truth[c], x) for c, x in zip(shuffled.captions, shuffled.images, strict=True)
    )
    assert len(ten.split_off(0.3, 0)[1].captions) == 3


def test_the_hash_covers_captions():
    three = scenes("test", 3)
    a, b, c = three.captions
    assert replace(three, captions=(a, c, b)).sha256 != three.sha256
    assert (
        replace(three, captions=(a + b, "", c)).sha256 != replace(three, captions=(a, b, c)).sha256
    )
    plain = data.ImageDataset(three.images, three.labels, three.classes, "scenes", "test")
    assert replace(three, captions=()).sha256 == plain.sha256
    with pytest.raises(ValueError, match="3 images need as many captions, got 2"):
        replace(three, captions=(a, b))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", 3), "Did you mean 'train'"),
        (("train", 0), "count must be a whole number of at least 1"),
        (("train", 3, 0, -1), "start must be"),
    ],
)
def test_bad_arguments(arguments, message):
    split, count, *rest = arguments
    with pytest.raises(ValueError, match=message):
        scenes(split, count, *rest[:1], **({"start": rest[1]} if len(rest) > 1 else {}))


def test_digits_that_do_not_do():
    test = data.load("digits", "test")
    with pytest.raises(ValueError, match="there is no 4"):
        scenes("test", 3, digits=test[test.labels != 4])
    blank = replace(test, images=test.images * (torch.arange(1000) != 17)[:, None, None, None])
    with pytest.raises(ValueError, match="no ink"):
        scenes("test", 3, digits=blank)
    with pytest.raises(ValueError, match='kind "images"'):
        scenes("test", 3, digits=replace(test, kind="images"))
