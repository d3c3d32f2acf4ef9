"""Extractors: by name, by the data's kind, and functions of the user's own."""

import sys
import types

import pytest
import torch

from companion.data import ImageDataset, load, to_float
from companion.metrics import features
from companion.metrics.extractors import default_extractor, extractor
from companion.metrics.features import digit_features, digit_probabilities


@pytest.fixture(scope="module")
def digits():
    return load("digits", "test")[::50]


def colour(n: int = 5, size: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def test_the_digit_cnn(digits):
    chosen = extractor("digit-cnn")
    assert chosen.name == "digit-cnn"
    assert torch.equal(chosen.features(digits.images), digit_features(digits.images))
    assert torch.equal(chosen.probabilities(digits.images), digit_probabilities(digits.images))
    found, probabilities = chosen.both(digits.images)
    assert torch.equal(found, digit_features(digits.images))
    torch.testing.assert_close(probabilities, digit_probabilities(digits.images))


def test_the_batch_size_changes_nothing(digits):
    one, many = (extractor("digit-cnn", batch_size=n).features(digits.images) for n in (1, 64))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extractor("digit-cnn", batch_size=0)


# ---------------------------------------------------------------- by the data's kind


@pytest.mark.parametrize("name", ["digits", "anything"])
@pytest.mark.parametrize(("kind", "expected"), [("digits", "digit-cnn"), ("images", None)])
def test_the_kind_of_the_data_decides(kind, expected, name):
    """Not its name: pictures in a folder called digits are pictures, even grey ones of 28×28."""
    images, labels = torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([3, 4])
    found = default_extractor(
        ImageDataset(images, labels, tuple("0123456789"), name, "test", kind=kind)
    )
    assert (found and found.name) == expected


def test_the_digits_of_the_book_have_the_digit_cnn(digits):
    assert default_extractor(digits).name == "digit-cnn"


# ---------------------------------------------------------------- Inception


class StandIn(torch.nn.Module):
    def features(self, x):
        return x.float().mean(dim=(2, 3)).repeat(1, 683)[:, :2048]

    def unbiased_logits(self, found):
        return found[:, :1008]


def test_inception_takes_colour_and_grey(monkeypatch):
    asked = []
    monkeypatch.setattr(features, "_inception", lambda w, device: asked.append(w) or StandIn())
    chosen = extractor("inception", weights="w.pth")
    assert asked == ["w.pth"]  # read at once, so that a wrong file is told before anything else
    x = colour()
    torch.testing.assert_close(chosen.features(x)[:, :3], x.float().mean(dim=(2, 3)))
    grey = x[:, :1]
    assert torch.equal(chosen.features(grey), chosen.features(grey.repeat(1, 3, 1, 1)))
    found, probabilities = chosen.both(x)
    assert torch.equal(found, chosen.features(x))
    assert torch.equal(probabilities, chosen.probabilities(x))


def test_inception_wants_a_file(tmp_path):
    with pytest.raises(
        ValueError, match=r"needs a local file of its weights.*pt_inception-2015-12-05"
    ):
        extractor("inception")
    with pytest.raises(FileNotFoundError, match=r"no file of Inception weights at .*none\.pth"):
        extractor("inception", weights=tmp_path / "none.pth")
    (tmp_path / "wrong.pth").write_bytes(b"wrong")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        extractor("inception", weights=tmp_path / "wrong.pth")


# ---------------------------------------------------------------- functions of the user's own


@pytest.fixture
def own(monkeypatch):
    """A module of the user's, whose function is set by the test."""
    module = types.ModuleType("own_features_for_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def make(function, **options):
        module.function = function
        return extractor(f"{module.__name__}:function", **options)

    return make


def test_a_function_gets_floats_in_batches_without_gradients(own):
    seen = []
    scale = torch.ones((), requires_grad=True)

    def function(x):
        seen.append(x)
        return (scale * x).mean(dim=(2, 3))

    x = colour(7)
    chosen = own(function, batch_size=3)
    found = chosen.features(x)
    assert [len(part) for part in seen] == [3, 3, 1]
    assert torch.equal(torch.cat(seen), to_float(x))
    assert torch.equal(found, to_float(x).mean(dim=(2, 3)))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(chosen.features(to_float(x)), found)
    assert chosen.probabilities is None
    assert chosen.both(x)[1] is None
    assert chosen.name == "own_features_for_a_test:function"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.numpy(), "returned ndarray; it must return a tensor of floats with a row"),
        (lambda x: x, r"returned the shape \(4, 3, 9, 9\); .* each of the 4 images, \(n, d\)"),
        (lambda x: x.flatten(1)[:1], r"returned the shape \(1, 243\)"),
        (lambda x: x.flatten(1)[:, :0], r"returned the shape \(4, 0\)"),
        (lambda x: x.mean(dim=(1, 2, 3)), r"returned the shape \(4,\)"),
        (lambda x: x.flatten(1).long(), "returned torch.int64"),
        (lambda x: x.flatten(1) * torch.nan, "returned NaN or infinite features"),
        (
            lambda x: x.flatten(1)[:, : len(x)],
            "returned 1 features for some images and 4 for others",
        ),
    ],
)
def test_a_function_that_returns_something_else(own, function, message):
    with pytest.raises(ValueError, match=f"own_features_for_a_test:function {message}"):
        own(function, batch_size=4).features(colour())


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 9, 9) + 7, ValueError, r"must lie in \[-1, 1\]"),
        (torch.zeros(0, 3, 9, 9), ValueError, "no images"),
        (torch.zeros(9, 9), ValueError, r"shape \(n, c, h, w\), got \(9, 9\)"),
        (torch.zeros(2, 3, 9, 9, dtype=torch.int64), TypeError, "floats in"),
    ],
)
def test_images_are_checked_before_the_function_sees_them(own, images, error, message):
    with pytest.raises(error, match=message):
        own(lambda x: x.flatten(1)).features(images)


def test_a_module_beside_the_user_is_found(tmp_path, monkeypatch):
    (tmp_path / "features_of_mine_7.py").write_text(
        "class Means:\n    @staticmethod\n    def of(x):\n        return x.mean(dim=(2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    chosen = extractor("features_of_mine_7:Means.of")
    assert sys.path == before
    torch.testing.assert_close(chosen.features(colour()), to_float(colour()).mean(dim=(2, 3)))
    del sys.modules["features_of_mine_7"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "digit-cn",
            {},
            "unknown feature extractor 'digit-cn'. Did you mean 'digit-cnn'.*module:function",
        ),
        (
            "no_such_module_8:f",
            {},
            "there is no module 'no_such_module_8', neither installed nor in /",
        ),
        ("math:no_such", {}, "math has no 'no_such'"),
        ("math:pi", {}, "'math:pi' is float, which cannot be called"),
        (":f", {}, "':f' must be written module:function"),
        ("math:", {}, "'math:' must be written module:function"),
        ("a:b:c", {}, "'a:b:c' must be written module:function"),
        ("digit-cnn", {"weights": "w.pth"}, "weights are for the extractor 'inception' alone"),
    ],
)
def test_names_that_are_none(name, options, message):
    with pytest.raises(ValueError, match=message):
        extractor(name, **options)
