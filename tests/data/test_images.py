"""Bytes and floats, and the dataset that holds images."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.data import ImageDataset, to_float, to_uint8

# The messages for wrong types are the library's own; in these tests jaxtyping would be the first to complain.
to_float_unchecked = inspect.unwrap(to_float)
to_uint8_unchecked = inspect.unwrap(to_uint8)
unchecked_init = inspect.unwrap(ImageDataset.__init__)


def dataset(n=12, classes=("a", "b", "c")):
    images = torch.arange(n * 2 * 3 * 4).reshape(n, 2, 3, 4) % 256
    return ImageDataset(
        images=images.to(torch.uint8),
        labels=torch.arange(n) % len(classes),
        classes=classes,
        name="made-up",
        split="train",
    )


def test_every_byte_survives_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    floats = to_float(every)
    assert floats.dtype == torch.float32
    assert floats[0] == -1
    assert floats[255] == 1
    assert torch.equal(to_uint8(floats), every)


def test_to_float_leaves_its_input_alone():
    every = torch.arange(256, dtype=torch.uint8)
    to_float(every)
    assert torch.equal(every, torch.arange(256, dtype=torch.uint8))


def test_to_uint8_leaves_its_input_alone():
    floats = torch.linspace(-1, 1, 7)
    before = floats.clone()
    to_uint8(floats)
    assert torch.equal(floats, before)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
def test_rounding_is_to_the_nearest_byte(values):
    x = torch.tensor(values, dtype=torch.float32)
    assert (to_float(to_uint8(x)) - x).abs().max() <= 1 / 255 + 1e-6


def test_a_slight_overshoot_is_clamped():
    assert to_uint8(torch.tensor([-1.4, 1.4])).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_uint8_takes_every_float_type(dtype):
    assert to_uint8(torch.tensor([-1.0, 1.0], dtype=dtype)).tolist() == [0, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_errors(bad):
    with pytest.raises(ValueError, match="1 NaN or infinite values among 3"):
        to_uint8(torch.tensor([0.0, bad, 1.0]))


def test_pixels_up_to_255_are_an_error_with_the_remedy():
    with pytest.raises(ValueError, match=r"\[0, 255\].*x / 127.5 - 1"):
        to_uint8(torch.tensor([0.0, 255.0]))


def test_wrong_types_are_errors():
    with pytest.raises(TypeError, match="needs uint8 images"):
        to_float_unchecked(torch.zeros(3))
    with pytest.raises(TypeError, match="needs floats"):
        to_uint8_unchecked(torch.zeros(3, dtype=torch.int64))


def test_selection():
    ds = dataset()
    assert len(ds) == 12
    assert len(ds[:5]) == 5
    assert torch.equal(ds[2:9:3].images, ds.images[2:9:3])
    assert torch.equal(ds[::-1].labels, ds.labels.flip(0))
    assert torch.equal(ds[ds.labels == 1].images, ds.images[ds.labels == 1])
    assert torch.equal(ds[[3, -1, 3]].images, ds.images[[3, -1, 3]])
    assert torch.equal(ds[np.array([4, 2])].labels, ds.labels[[4, 2]])
    assert torch.equal(ds[torch.tensor([4, 2])].labels, ds.labels[[4, 2]])
    assert torch.equal(ds[5].images, ds.images[5:6])
    assert len(ds[[]]) == 0
    assert ds[:5].classes == ds.classes


@pytest.mark.parametrize("key", [12, -13, [0, 12], [True, False], slice(None, None, 0)])
def test_wrong_selections_are_errors(key):
    with pytest.raises((IndexError, ValueError)):
        dataset()[key]


def test_images_are_not_chosen_by_floats():
    with pytest.raises(IndexError, match=r"not by torch\.float32"):
        dataset()[torch.tensor([0.5])]


def test_iteration_ends():
    assert [len(one) for one in dataset(3)] == [1, 1, 1]


def test_floats_is_to_float_of_the_images():
    ds = dataset()
    assert torch.equal(ds.floats(), to_float(ds.images))


def test_shuffling_keeps_pairs_and_follows_the_generator():
    ds = dataset(100)
    once = ds.shuffled(torch.Generator().manual_seed(1))
    again = ds.shuffled(torch.Generator().manual_seed(1))
    other = ds.shuffled(torch.Generator().manual_seed(2))
    assert once.sha256 == again.sha256 != other.sha256 != ds.sha256
    pairs = {(i.numpy().tobytes(), int(k)) for i, k in zip(ds.images, ds.labels, strict=True)}
    assert pairs == {
        (i.numpy().tobytes(), int(k)) for i, k in zip(once.images, once.labels, strict=True)
    }


def test_the_hash_sees_pixels_labels_and_shape():
    ds = dataset()
    hashes = {ds.sha256}
    images = ds.images.clone()
    images[3, 1, 2, 1] += 1
    hashes.add(ImageDataset(images, ds.labels, ds.classes, "x", "y").sha256)
    hashes.add(ImageDataset(ds.images, ds.labels.flip(0), ds.classes, "x", "y").sha256)
    hashes.add(ImageDataset(ds.images.reshape(12, 2, 4, 3), ds.labels, ds.classes, "x", "y").sha256)
    assert len(hashes) == 4
    assert ImageDataset(ds.images.clone(), ds.labels, ds.classes, "x", "y").sha256 == ds.sha256


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"images": torch.zeros(2, 1, 3, 3)},
            TypeError,
            "images must be a uint8 tensor, got torch.float32",
        ),
        (
            {"images": np.zeros((2, 1, 3, 3))},
            TypeError,
            "images must be a uint8 tensor, got float64",
        ),
        (
            {"images": torch.zeros(2, 3, 3, dtype=torch.uint8)},
            ValueError,
            r"4 dimensions.*\(2, 3, 3\)",
        ),
        (
            {"labels": torch.zeros(2)},
            TypeError,
            "labels must be an int64 tensor, got torch.float32",
        ),
        (
            {"labels": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            "2 images need labels of shape",
        ),
        (
            {"labels": torch.tensor([0, 2])},
            ValueError,
            "labels lie in 0…2, but there are 2 classes",
        ),
        ({"labels": torch.tensor([-1, 0])}, ValueError, "labels lie in -1…0"),
    ],
)
def test_wrong_content_is_named(change, kind, message):
    good = {
        "images": torch.zeros(2, 1, 3, 3, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "classes": ("a", "b"),
        "name": "made-up",
        "split": "train",
    }
    with pytest.raises(kind, match=message):
        unchecked_init(object.__new__(ImageDataset), **(good | change))


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        dataset().name = "other"


def test_its_text_is_short():
    assert repr(dataset()) == "ImageDataset(made-up/train: 12 images 2×3×4, 3 classes)"
