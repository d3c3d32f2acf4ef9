"""The feature extractors: the digit network, and the way to canonical Inception."""

import inspect
import os

import pytest
import torch

import companion
from companion.data import load, to_float
from companion.metrics import features
from companion.metrics.features import (
    digit_features,
    digit_features_and_probabilities,
    digit_probabilities,
    inception_features,
    inception_features_and_probabilities,
    inception_probabilities,
)
from companion.metrics.inception import InceptionV3

unchecked = {
    f: inspect.unwrap(f) for f in (digit_features, digit_probabilities, inception_features)
}


@pytest.fixture(scope="module")
def held_out():
    return load("digits", "test")


def test_the_classifier_is_right_on_the_held_out_digits(held_out):
    """988 of 1,000 is what the book promises; the shipped network reaches 996."""
    found = digit_probabilities(held_out.images).argmax(dim=1)
    assert int((found == held_out.labels).sum()) >= 988


def test_features_are_the_penultimate_layer(held_out):
    x = held_out.images[::100]
    model = companion.load_checkpoint("digit-cnn")
    with torch.no_grad():
        torch.testing.assert_close(
            model.head(digit_features(x)).softmax(dim=1), digit_probabilities(x)
        )
    assert digit_features(x).shape == (10, 64)
    assert digit_features(x).dtype == torch.float32
    assert float(digit_features(x).min()) >= 0


def test_bytes_and_floats_give_the_same(held_out):
    x = held_out.images[:20]
    torch.testing.assert_close(digit_features(x), digit_features(to_float(x)), rtol=0, atol=0)


def test_neighbours_in_the_batch_do_not_matter(held_out):
    x = held_out.images[::25]
    alone = digit_features(x, batch_size=1)
    torch.testing.assert_close(digit_features(x, batch_size=40), alone, rtol=1e-4, atol=1e-5)


def test_probabilities_sum_to_one(held_out):
    sums = digit_probabilities(held_out.images[::25]).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(40))


def test_no_gradient_is_kept(held_out):
    assert not digit_features(held_out.floats()[:2].requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 28, 28), ValueError, r"shape \(n, 1, 28, 28\), got \(1, 28, 28\)"),
        (torch.zeros(2, 3, 28, 28), ValueError, r"got \(2, 3, 28, 28\)"),
        (torch.zeros(2, 1, 32, 32), ValueError, r"got \(2, 1, 32, 32\)"),
        (torch.zeros(0, 1, 28, 28), ValueError, "no images"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.int64), TypeError, r"floats in \[-1, 1\] or uint8"),
        (torch.full((2, 1, 28, 28), torch.nan), ValueError, "NaN"),
        (torch.full((2, 1, 28, 28), 255.0), ValueError, r"lie in \[-1, 1\], got \[255, 255\]"),
        ("seven", TypeError, "must be a tensor, got str"),
    ],
)
@pytest.mark.parametrize("function", [digit_features, digit_probabilities])
def test_bad_images(function, images, error, message, monkeypatch):
    monkeypatch.setattr(features, "check_images", inspect.unwrap(features.check_images))
    with pytest.raises(error, match=message):
        unchecked[function](images)


def test_a_batch_of_none():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        digit_features(torch.zeros(1, 1, 28, 28), batch_size=0)


def test_both_at_once_are_the_two(held_out):
    x = held_out.images[::10]
    found, probabilities = digit_features_and_probabilities(x)
    assert torch.equal(found, digit_features(x))
    torch.testing.assert_close(probabilities, digit_probabilities(x))


# ---------------------------------------------------------------- Inception, with a stand-in for the network


@pytest.fixture
def seen(monkeypatch):
    """Replaces Inception by a network that records what reaches it."""
    record = []

    class StandIn(torch.nn.Module):
        def features(self, x):
            record.append(x)
            return x.float().mean(dim=(1, 2, 3))[:, None].repeat(1, 2048)

        def unbiased_logits(self, found):
            return 0.01 * found[:, :1008] * torch.linspace(0, 1, 1008)

    monkeypatch.setattr(features, "_inception", lambda weights, device: StandIn())
    return record


def test_inception_gets_bytes_unresized(seen):
    images = torch.randint(0, 256, (5, 3, 17, 19), dtype=torch.uint8)
    result = inception_features(images, batch_size=2, weights="w.pth")
    assert result.shape == (5, 2048)
    assert torch.equal(torch.cat(seen), images)
    torch.testing.assert_close(result[:, 0], images.float().mean(dim=(1, 2, 3)))


def test_inception_rounds_floats_to_bytes(seen):
    images = torch.tensor([-1.0, 0.999, 0.0, 0.3]).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    inception_features(images, weights="w.pth")
    assert seen[0].dtype == torch.uint8
    assert seen[0][:, 0, 0, 0].tolist() == [0, 255, 128, 166]


def test_inception_probabilities_use_the_logits_without_bias(seen):
    result = inception_probabilities(torch.zeros(2, 3, 8, 8), weights="w.pth")
    expected = (1.28 * torch.linspace(0, 1, 1008)).softmax(0).expand(2, 1008)
    torch.testing.assert_close(result, expected)
    both = inception_features_and_probabilities(torch.zeros(2, 3, 8, 8), weights="w.pth")
    torch.testing.assert_close(both[1], expected)


def test_a_file_that_was_replaced_is_read_again(monkeypatch, tmp_path):
    read = []
    with torch.device("meta"):
        network = InceptionV3()
    monkeypatch.setattr(features, "load_inception", lambda path, _: read.append(path) or network)
    features._loaded_inception.cache_clear()
    path = tmp_path / "w.pth"
    for content in (b"one", b"another"):
        path.write_bytes(content)
        os.utime(path, ns=(len(content), len(content)))
        features.check_inception(path)
        features.check_inception(path)
    features._loaded_inception.cache_clear()
    assert read == [path.resolve()] * 2


def test_grey_images_are_refused_by_inception():
    with pytest.raises(ValueError, match=r"\(n, 3, h, w\), got \(2, 1, 28, 28\)"):
        unchecked[inception_features](torch.zeros(2, 1, 28, 28), weights="w.pth")
