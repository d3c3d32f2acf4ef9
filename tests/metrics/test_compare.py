"""Comparisons: values are those of the measures, spreads are standard errors, bad input."""

import inspect
import math

import pytest
import torch

from companion.measurement import find
from companion.metrics import compare, fid, inception_score, kid, precision_recall
from companion.randomness import derive

unchecked = inspect.unwrap(compare)


def draw(seed: int, n: int, d: int = 4, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def test_values_are_those_of_the_measures():
    real, fake = draw(0, 120), draw(1, 90, shift=0.3)
    p_real, p_fake = (3 * real).softmax(1), (3 * fake).softmax(1)
    found = compare(real, fake, p_real, p_fake, k=2, seed=7)
    assert [(m.name, m.of) for m in found] == [
        ("FID", ""),
        ("KID", ""),
        ("precision", ""),
        ("recall", ""),
        ("Inception Score", ""),
        ("Inception Score", "real"),
    ]
    score, best = inception_score(p_fake, seed=7), inception_score(p_real, seed=7)
    expected = {
        ("FID", ""): fid(real, fake),
        ("KID", ""): kid(real, fake).mean,
        ("precision", ""): precision_recall(real, fake, 2).precision,
        ("recall", ""): precision_recall(real, fake, 2).recall,
        ("Inception Score", ""): score.mean,
        ("Inception Score", "real"): best.mean,
    }
    assert {(m.name, m.of): m.value for m in found} == expected
    assert [m.spread for m in found[4:]] == [score.std, best.std]
    assert [m.samples for m in found] == [90] * 5 + [120]
    assert {m.seed for m in found} == {7}
    assert [m.better for m in found] == ["lower"] * 2 + ["higher"] * 4


def test_spreads_are_those_of_random_halves():
    real, fake = draw(0, 60), draw(1, 50, shift=0.3)
    values = []
    for i in range(4):
        generator = derive(3, "halves", i)
        a = real[torch.randperm(60, generator=generator)[:30]]
        b = fake[torch.randperm(50, generator=generator)[:25]]
        values.append((fid(a, b), kid(a, b).mean, *precision_recall(a, b)))
    expected = torch.tensor(values, dtype=torch.float64).std(dim=0)
    found = compare(real, fake, seed=3, repeats=4)
    assert [m.spread for m in found] == pytest.approx(expected.tolist(), rel=1e-9)


def test_spreads_are_standard_errors():
    """Beside what really happens with other samples, in 25 pairs of sets."""
    runs = [compare(draw(s, 100), draw(1000 + s, 100, shift=0.5)) for s in range(25)]
    for name in ("FID", "KID", "precision"):
        of_runs = [find(run, name) for run in runs]
        really = torch.tensor([m.value for m in of_runs]).std()
        claimed = math.sqrt(torch.tensor([m.spread**2 for m in of_runs]).mean())
        assert claimed / float(really) == pytest.approx(1, abs=0.45), name


def test_the_seed_decides_the_spread_and_nothing_else():
    real, fake = draw(0, 60), draw(1, 60)
    one, same, other = (compare(real, fake, seed=s, repeats=3) for s in (0, 0, 1))
    assert one == same
    assert [m.value for m in one] == [m.value for m in other]
    assert one[0].spread != other[0].spread


def test_what_cannot_be_repeated_has_no_spread():
    assert [m.spread for m in compare(draw(0, 40), draw(1, 40), repeats=0)] == [None] * 4
    spreads = [m.spread for m in compare(draw(0, 6), draw(1, 6))]
    assert [s is None for s in spreads] == [False, False, True, True]  # 3 samples, 3 neighbours
    few = compare(draw(0, 6), draw(1, 6), None, draw(1, 6).softmax(1))
    assert find(few, "Inception Score").samples == 6


GOOD = draw(0, 12)


@pytest.mark.parametrize(
    ("fake", "options", "error", "message"),
    [
        (torch.zeros(8, 1, 28, 28), {}, ValueError, "fake_features of the shape .* are images"),
        (GOOD[:, :3], {}, ValueError, "real_features has 4 dimensions and fake_features 3"),
        (GOOD[:3], {}, ValueError, "fake has 3 samples; the 3 neighbours"),
        (GOOD * math.nan, {}, ValueError, "NaN or infinite"),
        (GOOD, {"repeats": 1}, ValueError, "repeats must be 0, or at least 2"),
        (GOOD, {"repeats": -1}, ValueError, "repeats must be 0, or at least 2"),
        (GOOD, {"k": 0}, ValueError, "k must be at least 1"),
        (GOOD, {"fake_probabilities": GOOD}, ValueError, "probs must lie in"),
        ("digits", {}, TypeError, "fake_features must be a tensor or a NumPy array, got str"),
    ],
)
def test_bad_input(fake, options, error, message):
    with pytest.raises(error, match=message):
        unchecked(GOOD, fake, **options)
