"""The Inception Score against torchmetrics, its limits, and bad input."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.image.inception import InceptionScore as Reference

from companion.metrics import class_entropies, inception_score

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
    assert inception_score(probs) == pytest.approx((10, 0), abs=1e-9)
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
    ours = inception_score(probs[order], splits=10)
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
    ours = inception_score(probs, splits=4)
    assert ours == pytest.approx((np.mean(scores), np.std(scores)), abs=1e-9)


def test_its_logarithm_is_the_difference_of_two_entropies():
    probs = random_probabilities(200, 6, seed=3)
    entropies = class_entropies(probs)
    expected = np.exp(entropies.marginal - entropies.conditional)
    assert inception_score(probs, splits=1).mean == pytest.approx(expected, abs=1e-9)


def test_shuffling_mends_samples_sorted_by_class(generator):
    probs = torch.eye(10).repeat_interleave(50, dim=0)
    assert inception_score(probs).mean == pytest.approx(1, abs=1e-9)  # each split sees one class
    assert inception_score(probs, generator=generator).mean > 8


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
