"""The oracle of scenes: right on real scenes of held-out digits, wrong where it must be, and never an exception."""

import dataclasses

import pytest
import torch

from companion.data import scenes as s
from companion.metrics import scene_oracle as oracle

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@pytest.fixture(scope="module")
def real():
    return s.scenes("test", 600, seed=11)


@pytest.fixture(scope="module")
def reading(real):
    return oracle.read(real.floats())


def shares(captions, reading):
    found = oracle.agreement(captions, reading)
    return {
        n: float(getattr(found, n).double().mean()) for n in ("colour", "place", "digits", "all")
    }


@pytest.mark.parametrize("split", ["test", "composition"])
def test_its_accuracy_on_real_scenes_of_held_out_digits(split):
    made = s.scenes(split, 600, seed=11)
    found = oracle.accuracies(made.floats(), made.captions)
    assert found["colour"] >= 0.99
    assert found["place"] >= 0.99
    assert found["digit"] >= 0.98
    assert found["both digits"] >= 0.96


def test_shuffled_captions_are_at_chance(real, reading):
    found = shares(real.captions[1:] + real.captions[:1], reading)
    assert found["colour"] < 0.08  # 1/36
    assert found["digits"] < 0.16  # 1/10
    assert found["place"] < 0.5
    assert found["all"] < 0.02


def test_the_opposite_relation_with_things_exchanged_is_the_same_scene(real, reading):
    told = [s.parse(c) for c in real.captions]
    same = [s.Scene(t.second, OPPOSITE[t.relation], t.first) for t in told]
    assert shares(same, reading) == shares(told, reading)
    assert torch.equal(oracle.agreement(same, reading).all, oracle.agreement(told, reading).all)


def test_a_wrong_word_is_wrong_in_its_own_part_alone(real, reading):
    told = [s.parse(c) for c in real.captions]
    right = shares(told, reading)
    colours = list(s.COLOURS)
    other = {c: colours[(k + 1) % 6] for k, c in enumerate(colours)}
    recoloured = [
        dataclasses.replace(t, first=dataclasses.replace(t.first, colour=other[t.first.colour]))
        for t in told
    ]
    found = shares(recoloured, reading)
    assert found["colour"] < 0.01
    assert found["all"] < 0.01
    assert found["digits"] == right["digits"]
    turned = [
        dataclasses.replace(t, relation=OPPOSITE[t.relation]) for t in told if t.first != t.second
    ]
    chosen = torch.tensor([t.first != t.second for t in told])
    part = oracle.Reading(**{n: v[chosen] for n, v in vars(reading).items()})
    assert shares(turned, part)["place"] < 0.01


def test_turned_by_a_quarter_the_place_is_wrong(real):
    turned = real.floats().mT
    assert oracle.accuracies(turned, real.captions)["place"] == 0


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, float("nan"), float("inf")])
def test_nothing_is_read_in_images_of_one_value(value):
    images = torch.full((5, 3, 32, 32), value)
    assert not oracle.read(images).found.any()
    captions = ["a red three left of a blue seven"] * 5
    assert set(oracle.accuracies(images, captions).values()) == {0.0}


def test_nothing_is_read_in_noise():
    g = torch.Generator().manual_seed(0)
    assert not oracle.read(torch.rand(50, 3, 32, 32, generator=g) * 2 - 1).found.any()
    assert not oracle.read(torch.randn(50, 3, 32, 32, generator=g)).found.any()


def test_nothing_is_read_with_one_thing_or_three():
    made = s.scenes("test", 200, seed=2)
    across = torch.tensor(["of" in c for c in made.captions])
    x = made.floats()[across]
    assert len(x) > 50
    one = x.clone()
    one[..., 16:] = -1
    three = x.clone()
    three[..., :5, 2:7] = 1
    three[..., 26:, 2:7] = 1
    assert not oracle.read(three).found.any()
    assert not oracle.read(one).found.any()


def test_a_faint_background_does_not_disturb(real):
    g = torch.Generator().manual_seed(0)
    x = (real.floats() + 0.1 * torch.randn(real.images.shape, generator=g)).clamp(-1, 1)
    found = oracle.accuracies(x, real.captions)
    assert found["colour"] > 0.98
    assert found["place"] > 0.98
    assert found["digit"] > 0.95


def test_a_scene_is_read_alike_in_any_batch(real, reading):
    alone = oracle.read(real.floats()[17:18])
    assert torch.equal(alone.digits[0], reading.digits[17])
    assert torch.equal(alone.colours[0], reading.colours[17])


def test_bad_input_is_one_clear_error(real):
    with pytest.raises(ValueError, match="as many captions"):
        oracle.accuracies(real.floats()[:2], real.captions[:1])
    with pytest.raises(ValueError, match="at least one image"):
        oracle.accuracies(real.floats()[:0], [])
