"""The settings' schedule and their checks."""

import itertools
import math

import pytest

from companion.training import TrainingSettings, learning_rate_factor


def factors(**settings) -> list[float]:
    chosen = TrainingSettings(**settings)
    return [learning_rate_factor(step, chosen) for step in range(chosen.steps)]


def test_linear_warm_up_then_half_a_cosine():
    found = factors(steps=100, warmup=0.1)
    assert found[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    # 90 steps remain: at the first the factor is 1, half-way ½, and the end, which is not a step any more, 0.
    assert found[10] == 1
    assert found[55] == pytest.approx(0.5)
    assert found[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))


def test_a_constant_rate():
    assert factors(steps=20, warmup=0.25, decay="constant") == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, *[1.0] * 16]
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_short_trainings_have_a_rate_too(steps, warmup, decay):
    assert all(0 < f <= 1 for f in factors(steps=steps, warmup=warmup, decay=decay))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"accumulate": -1}, "accumulate must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\), got 1"),
        ({"beta2": -0.1}, r"beta2 must lie in \[0, 1\)"),
        ({"ema": 1.0}, "ema must lie between 0 and 1, or be None, got 1"),
        ({"clip": 0.0}, "clip must be positive, or None, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**changes)
