"""The Inception Score against torchmetrics, its limits, and bad input."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.image.inception import InceptionScore as Reference

from companion.data import load
from companion.metrics import class_entropies, inception_score
from companion.metrics.features import digit_probabilities
from companion.randomness import derive

# Under test, jaxtyping would complain about bad input first; users see the library's own messages.
unchecked = inspect.unwrap(inception_score)


def random_probabilities(n: int, classes: int, seed: int = 0) -> torch.Tensor:
    logits = 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))
    return logits.double().softmax(dim=1)


def test_a_constant_predictor_scores_one():
    probs = torch.tensor([[0.7, 0.2, 0.1]]).repeat(50, 1)
    score = inception_score(probs)
    assert score.mean == pytest.approx(1, abs=1e-12)
    assert score.std == pytest.approx(0, abs=1e-12)


def test_certain_predictions_in_equal_share_score_the_number_of_classes():
    probs = torch.eye(10).repeat(30, 1)
    assert inception_score(probs, shuffle=False) == pytest.approx((10, 0), abs=1e-9)
    assert inception_score(probs, splits=1).mean == pytest.approx(10, abs=1e-9)


def test_ten_images_are_enough_for_the_largest_score():
    assert inception_score(torch.eye(10), splits=1).mean == pytest.approx(10, abs=1e-9)


class LogProbabilities(torch.nn.Module):
    """Hands what it is given to torchmetrics as if it were a network's logits."""

    num_features = 7

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
def test_equals_torchmetrics():
    probs = random_probabilities(600, 7)
    # Identical splits need an order that a shuffle keeps: with one split any order will do.
    reference = Reference(feature=LogProbabilities(), splits=1)
    reference.update(probs.log())
    ours = inception_score(probs, splits=1)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        theirs = reference.compute()[0]
    assert ours.mean == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
def test_splits_equal_torchmetrics_on_the_same_permutation():
    probs = random_probabilities(600, 7, seed=1)
    reference = Reference(feature=LogProbabilities(), splits=10)
    reference.update(probs.log())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        mean, std = reference.compute()
        torch.manual_seed(5)
        order = torch.randperm(600)
    ours = inception_score(probs[order], splits=10, shuffle=False)
    assert ours.mean == pytest.approx(float(mean), abs=1e-6)
    # Theirs divides by splits − 1, the paper's code and ours by splits.
    assert ours.std == pytest.approx(float(std) * np.sqrt(9 / 10), abs=1e-6)


def test_equals_the_definition_written_out():
    probs = random_probabilities(103, 5, seed=2).numpy()
    scores = []
    for i in range(4):
        part = probs[i * 103 // 4 : (i + 1) * 103 // 4]
        kl = [(p * np.log(p / part.mean(axis=0))).sum() for p in part]
        scores.append(np.exp(np.mean(kl)))
    ours = inception_score(probs, splits=4, shuffle=False)
    assert ours == pytest.approx((np.mean(scores), np.std(scores)), abs=1e-9)


def test_its_logarithm_is_the_difference_of_two_entropies():
    probs = random_probabilities(200, 6, seed=3)
    entropies = class_entropies(probs)
    expected = np.exp(entropies.marginal - entropies.conditional)
    assert inception_score(probs, splits=1).mean == pytest.approx(expected, abs=1e-9)


def test_shuffling_mends_samples_sorted_by_class(generator):
    probs = torch.eye(10).repeat_interleave(50, dim=0)
    assert inception_score(probs).mean > 8
    assert inception_score(probs, generator=generator).mean > 8
    in_order = inception_score(probs, shuffle=False)
    assert in_order.mean == pytest.approx(1, abs=1e-9)  # each split sees one class


def test_the_digits_of_a_data_set_score_as_the_readme_says():
    """They are sorted by class, as many data sets are; in their order they would score 1.03."""
    score = inception_score(digit_probabilities(load("digits", "test").images))
    assert score.mean == pytest.approx(9.4, abs=0.15)
    assert 0.1 < score.std < 0.5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 8))
def test_the_seed_decides_the_order_and_nothing_else(seed, splits):
    probs = random_probabilities(60, 4, seed)
    order = torch.randperm(60, generator=derive(seed, "inception score"))
    expected = inception_score(probs[order], splits, shuffle=False)
    assert inception_score(probs, splits, seed=seed) == expected
    assert inception_score(probs, splits, seed=seed) == inception_score(probs, splits, seed=seed)
    generator = derive(seed, "inception score")
    assert inception_score(probs, splits, generator) == expected


def test_an_order_that_is_kept_needs_no_generator(generator):
    with pytest.raises(ValueError, match="shuffle=False keeps the order"):
        inception_score(torch.eye(10), generator=generator, shuffle=False)


@pytest.mark.parametrize("classes", [2, 10, 100, 1008])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_softmax_rows_of_any_precision_are_taken(classes, dtype, scale):
    logits = scale * torch.randn(300, classes, generator=torch.Generator().manual_seed(classes))
    exact = inception_score(logits.double().softmax(1), splits=2)
    for probs in (
        logits.softmax(1).to(dtype),
        logits.to(dtype).softmax(1),
        logits.softmax(1).to(dtype).float(),  # the rounding stays when the type is widened
    ):
        assert inception_score(probs, splits=2).mean == pytest.approx(exact.mean, rel=0.02)


def test_rows_that_no_rounding_explains_are_refused():
    probs = torch.full((20, 3), 1 / 3)
    probs[7] *= 1.005
    with pytest.raises(ValueError, match=r"row 7 sums to 1\.005"):
        inception_score(probs)


@pytest.mark.parametrize(
    "images", [torch.zeros(8, 1, 28, 28), torch.zeros(8, 3, 9, 9, dtype=torch.uint8)]
)
def test_images_instead_of_probabilities(images):
    with pytest.raises(ValueError, match=r"are images.*class probabilities.*digit_probabilities"):
        unchecked(images)


def test_the_generator_decides_the_shuffle():
    probs = random_probabilities(100, 4)
    one, same, other = (
        inception_score(probs, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert one == same != other


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float64, (12, 4), elements=st.floats(0, 1)).filter(lambda a: a.sum(1).min() > 1e-3),
    st.integers(1, 12),
)
def test_lies_between_one_and_the_number_of_classes(weights, splits):
    probs = weights / weights.sum(axis=1, keepdims=True)
    score = inception_score(probs, splits=splits)
    assert 1 <= score.mean <= 4 + 1e-9
    assert score.std >= 0


@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        (torch.ones(10), ValueError, r"shape \(n, classes\)"),
        (torch.ones(0, 3), ValueError, "empty"),
        (torch.full((20, 2), 0.6), ValueError, "must sum to one; row 0 sums to 1.2"),
        (torch.tensor([[2.0, -1.0]] * 20), ValueError, "softmax"),
        (torch.tensor([[0.5, float("nan")]] * 20), ValueError, "20 NaN or infinite"),
        (torch.ones(20, 1, dtype=torch.bool), TypeError, "real numbers"),
        ([[1.0]], TypeError, "tensor or a NumPy array"),
        (torch.full((9, 2), 0.5), ValueError, "10 splits need at least as many samples, got 9"),
        (torch.full((1, 2), 0.5), ValueError, "10 splits"),
    ],
)
def test_bad_input(probs, error, message):
    with pytest.raises(error, match=message):
        unchecked(probs)


def test_no_splits():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        inception_score(torch.eye(3), splits=0)
