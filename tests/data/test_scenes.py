"""Captioned scenes: the grammar, what the pixels show, and which digits and pairs each split may hold."""

import dataclasses
import itertools

import pytest
import torch

from companion import data
from companion.data import scenes as s

ALL_THINGS = [s.Thing(colour, digit) for colour, digit in s.ALL_PAIRS]


def test_parse_inverts_caption_for_every_scene():
    for first, relation, second in itertools.product(ALL_THINGS, s.RELATIONS, ALL_THINGS):
        scene = s.Scene(first, relation, second)
        assert s.parse(scene.caption()) == scene


def test_a_caption_reads_as_in_the_book():
    scene = s.Scene(s.Thing("red", 3), "left of", s.Thing("blue", 7))
    assert scene.caption() == "a red three left of a blue seven"
    assert s.parse("  A red THREE left of  a blue seven ") == scene


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a read three left of a blue seven", "'read'. Did you mean 'red'"),
        ("a red three lft of a blue seven", "'lft'. Did you mean 'left'"),
        ("", "a caption reads"),
        ("a red three", "a caption reads"),
        ("a red three left a blue seven", "a caption reads"),
        ("a three red left of a blue seven", "a caption reads"),
        ("a red three left of a blue seven above a red one", "a caption reads"),
    ],
)
def test_another_sentence_is_one_clear_error(caption, message):
    with pytest.raises(ValueError, match=message):
        s.parse(caption)


def test_unknown_things_and_relations_are_named():
    with pytest.raises(ValueError, match=r"unknown colour .gren.\. Did you mean 'green'"):
        s.Thing("gren", 3)
    with pytest.raises(ValueError, match="digit must be a whole number"):
        s.Thing("red", 10)
    with pytest.raises(ValueError, match="unknown relation 'beside'"):
        s.Scene(ALL_THINGS[0], "beside", ALL_THINGS[1])


def test_held_out_pairs_leave_every_colour_and_digit_often_seen():
    per_digit = [sum(digit == d for _, digit in s.HELD_OUT_PAIRS) for d in range(10)]
    per_colour = {sum(colour == c for colour, _ in s.HELD_OUT_PAIRS) for c in s.COLOURS}
    assert set(per_digit) == {1, 2}
    assert per_colour == {2}
    assert len(s.SEEN_PAIRS) == 48


@pytest.mark.parametrize("split", s.SPLITS)
def test_pairs_of_each_split(split):
    for caption in s.scenes(split, 3000, seed=3).captions:
        scene = s.parse(caption)
        new = [(t.colour, t.digit) in s.HELD_OUT_PAIRS for t in (scene.first, scene.second)]
        assert new[0] == (split == "composition")
        assert not new[1] or split == "composition"


def test_half_of_the_second_things_of_composition_are_held_out_pairs():
    told = [s.parse(c).second for c in s.scenes("composition", 4000).captions]
    share = sum((t.colour, t.digit) in s.HELD_OUT_PAIRS for t in told) / 4000
    assert share == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize(("split", "own"), [("train", "train"), ("test", "test")])
def test_every_painted_digit_is_one_of_the_split_s(split, own):
    """By content: the places of each scene hold the cropped digits of that split, and of no other."""
    made = s.scenes(split, 500, seed=1)
    mine, other = (
        {bytes(c.numpy().tobytes()) for c in s.crops(data.load("digits", part).images)}
        for part in (own, "test" if own == "train" else "train")
    )
    plan = s.layout(split, data.load("digits", own).labels, 500, 1)
    grey = made.images.amax(1)
    for image, corners in zip(grey, plan.corners.tolist(), strict=True):
        for y, x in corners:
            cell = image[y : y + s.PLACE, x : x + s.PLACE].contiguous().numpy().tobytes()
            assert cell in mine
            assert cell not in other


def test_pixels_show_what_the_caption_says():
    made = s.scenes("train", 400, seed=2)
    for image, caption in zip(made.images, made.captions, strict=True):
        scene = s.parse(caption)
        middles = []
        across = scene.relation in ("left of", "right of")
        halves = (image[:, :, :16], image[:, :, 16:]) if across else (image[:, :16], image[:, 16:])
        if scene.relation in ("right of", "below"):
            halves = halves[::-1]
        for half, thing in zip(halves, (scene.first, scene.second), strict=True):
            on = half.flatten(1).amax(1) > 0
            assert on.tolist() == [bool(v) for v in s.COLOURS[thing.colour]]
            middles.append(half.amax())
        assert min(middles) > 100


def test_crops_touch_a_place_s_edges_and_stay_inside():
    cut = s.crops(data.load("digits", "test").images)
    assert cut.shape == (1000, 14, 14)
    full_height = (cut[:, 0] > 0).any(1) & (cut[:, -1] > 0).any(1)
    full_width = (cut[:, :, 0] > 0).any(1) & (cut[:, :, -1] > 0).any(1)
    assert (full_height | full_width).all()


def test_a_scene_is_a_function_of_seed_split_and_number():
    many = s.scenes("train", 300, seed=4)
    few, one = s.scenes("train", 20, seed=4), s.scenes("train", 1, seed=4, start=217)
    assert torch.equal(few.images, many.images[:20])
    assert few.captions == many.captions[:20]
    assert torch.equal(one.images[0], many.images[217])
    assert one.captions == many.captions[217:218]
    assert not torch.equal(s.scenes("train", 20, seed=5).images, few.images)
    assert s.scenes("test", 20, seed=4).captions != few.captions


def test_scenes_of_other_digits():
    digits = data.load("digits", "test")
    assert s.scenes("test", 30, digits=digits).sha256 == s.scenes("test", 30).sha256
    with pytest.raises(ValueError, match="each class"):
        s.scenes("train", 3, digits=digits[digits.labels != 4])
    with pytest.raises(ValueError, match="kind 'images'"):
        s.scenes("train", 3, digits=s.scenes("train", 3))


def test_it_is_a_data_set_by_name_whose_batches_have_captions():
    made = data.load("scenes", "composition")
    assert made.images.shape == (5000, 3, 32, 32)
    assert made.name == "scenes"
    batch = made.batch([3, 1])
    assert batch.captions == (made.captions[3], made.captions[1])
    assert [s.DIGITS[k] for k in batch.require_labels()] == [c.split()[2] for c in batch.captions]
    assert made[10:12].captions == made.captions[10:12]
    assert made.shuffled(torch.Generator().manual_seed(0)).captions != made.captions
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        data.load("scenes", "valid")


def test_the_hash_covers_captions():
    made = s.scenes("test", 5)
    other = dataclasses.replace(made, captions=made.captions[::-1])
    assert other.sha256 != made.sha256
    with pytest.raises(ValueError, match="as many captions or none"):
        dataclasses.replace(made, captions=made.captions[:4])


def test_bad_numbers_are_named():
    for arguments in ({"count": 0}, {"count": 3, "seed": -1}, {"count": 3, "start": -1}):
        with pytest.raises(ValueError, match=r"(count|seed|start) must be a whole number"):
            s.scenes("train", **arguments)
    with pytest.raises(ValueError, match=r"unknown split .tset.\. Did you mean 'test'"):
        s.scenes("tset", 3)
