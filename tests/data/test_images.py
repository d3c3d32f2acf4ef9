"""Bytes and floats, and the dataset that holds images."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Subset

from companion.data import ImageDataset, downloads, load, to_float, to_uint8

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


# --- Batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        3,
        slice(2, 9, 3),
        [3, -1, 3],
        np.array([4, 2]),
        torch.tensor([4, 2]),
        torch.arange(12) % 2 == 0,
    ],
)
def test_a_batch_has_floats_and_labels(key):
    ds = dataset()
    batch = ds.batch(key)
    assert torch.equal(batch.images, to_float(ds[key].images))
    assert torch.equal(batch.labels, ds[key].labels)
    assert batch.captions is batch.tokens is None


def test_a_batch_is_made_where_it_is_wanted():
    batch = dataset().batch([1, 2], device="meta")
    assert batch.images.device.type == batch.labels.device.type == "meta"
    assert batch.images.shape == (2, 2, 3, 4)


def test_a_wrong_batch_is_an_error():
    with pytest.raises(IndexError, match="image 12 was asked for"):
        dataset().batch([0, 12])


# --- torch's DataLoader -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("direct", [True, False])
def test_a_data_loader_collates_floats_and_labels(workers, direct):
    ds = dataset(25)
    source = ds if direct else ds.as_torch()
    found = list(DataLoader(source, batch_size=10, num_workers=workers))
    assert [len(images) for images, _ in found] == [10, 10, 5]
    assert all(images.dtype == torch.float32 for images, _ in found)
    assert torch.equal(torch.cat([images for images, _ in found]), ds.floats())
    assert torch.equal(torch.cat([labels for _, labels in found]), ds.labels)


def test_a_data_loader_shuffles_subsets_and_concatenations():
    ds = dataset(20)
    torch_ds = ds.as_torch()
    image, label = torch_ds[7]
    assert torch.equal(image, ds.floats()[7])
    assert label == 7 % 3
    both = ConcatDataset([Subset(torch_ds, range(10)), Subset(torch_ds, range(10, 20))])
    loader = DataLoader(
        both, batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    order = images.flatten(1)[:, 0].argsort()
    assert not torch.equal(labels, ds.labels)
    wanted = ds.floats().flatten(1)[:, 0].argsort()
    assert torch.equal(labels[order], ds.labels[wanted])
    with pytest.raises(IndexError):
        torch_ds[20]
    assert len(torch_ds) == len(list(torch_ds)) == 20


# --- Training and validation ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40),
)
def test_the_parts_are_disjoint_and_in_proportion(labels, share, seed):
    n = len(labels)
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1)
    ds = ImageDataset(images, torch.tensor(labels), tuple("abcde"), "made-up", "all")
    wanted = round(share * n)
    if not 0 < wanted < n:
        with pytest.raises(ValueError, match="leave both parts at least one image"):
            ds.split_off(share, seed)
        return
    train, validation = ds.split_off(share, seed)
    assert (train.split, validation.split) == ("train", "validation")
    assert len(validation) == wanted
    parts = [part.images.flatten().tolist() for part in (train, validation)]
    assert sorted(parts[0] + parts[1]) == list(range(n))
    assert parts == [sorted(part) for part in parts]
    for part in (train, validation):
        assert part.labels.tolist() == [labels[i] for i in part.images.flatten().tolist()]
    counts = np.bincount(labels, minlength=5)
    found = np.bincount(validation.labels.numpy(), minlength=5)
    exact = counts * wanted / n
    assert (found >= np.floor(exact)).all()
    assert (found <= np.ceil(exact)).all()
    emptied = (found == counts) & (counts > 0)
    if emptied.any():  # then every class that could give one more has given it
        able = (counts > 0) & (np.floor(exact) + 1 < counts)
        assert (found == np.ceil(exact))[able & (exact % 1 > 0)].all()


def test_the_parts_follow_the_seed():
    images = torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1)
    ds = ImageDataset(images, torch.arange(100) % 3, ("a", "b", "c"), "made-up", "all")
    once, again, other = (ds.split_off(0.2, seed)[1] for seed in (1, np.int64(1), 2))
    assert once.sha256 == again.sha256 != other.sha256
    counts = torch.zeros(100)
    for seed in range(300):
        counts[ds.split_off(0.1, seed)[1].images.flatten().long()] += 1
    # Each image is chosen with probability 0.1; five standard deviations of 300 draws.
    assert (counts / 300 - 0.1).abs().max() < 5 * (0.09 / 300) ** 0.5


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan"), 0.01, 0.99])
def test_a_share_that_leaves_nothing_is_an_error(share):
    with pytest.raises(
        ValueError, match=r"share must be between 0 and 1.*12 images of made-up/train"
    ):
        dataset().split_off(share, 0)


# --- The kind ---------------------------------------------------------------------------------------------


def test_the_kind_is_decided_where_the_data_set_is_made():
    assert dataset().kind == "images"
    assert load("digits").kind == load("digits", "test")[:3].kind == "digits"
    kinds = {name: source.kind for name, source in downloads.SOURCES.items()}
    assert kinds == {"mnist": "digits", "fashion_mnist": "images", "cifar10": "images"}
    assert replace(load("digits"), name="renamed").kind == "digits"
    for part in load("digits").split_off(0.1, 0):
        assert part.kind == "digits"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "letters"}, 'kind must be "digits" or "images"'),
        ({"kind": "digits", "classes": tuple("abcdefghij")}, "the classes 0…9"),
        ({"kind": "digits", "images": torch.zeros(3, 3, 28, 28, dtype=torch.uint8)}, "of shape"),
    ],
)
def test_a_kind_that_cannot_be(change, message):
    good = load("digits")[:3]
    fields = {
        name: getattr(good, name) for name in ("images", "labels", "classes", "name", "split")
    }
    with pytest.raises(ValueError, match=message):
        unchecked_init(object.__new__(ImageDataset), **(fields | change))


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        dataset().name = "other"


def test_its_text_is_short():
    assert repr(dataset()) == "ImageDataset(made-up/train: 12 images 2×3×4, 3 classes)"
