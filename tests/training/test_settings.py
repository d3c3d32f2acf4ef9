"""The settings' schedule and their checks."""

import itertools
import math
from dataclasses import dataclass, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.training import TrainingSettings, learning_rate_factor
from companion.training.settings import same_schedule


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


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingSettings):
    """Settings of a model's own, beside those of every training; no test checks the types of its arguments."""

    beta: float = 1.0
    free_nats: float | None = None
    levels: tuple[float, ...] = (0.1, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 1,000,000,000, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 10,000,000, got 0"),
        ({"accumulate": -1}, "accumulate must be a whole number from 1 to 1,000,000, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0"),
        ({"steps": 1e23}, r"steps must be a whole number .*, got 1e\+23"),
        ({"steps": True}, "steps must be a whole number .*, got True"),
        ({"steps": 10**23}, "steps must be a whole number .* to 1,000,000,000, got 1000000000000"),
        (
            {"batch_size": 10**8},
            "batch_size must be a whole number .* to 10,000,000, got 100000000",
        ),
        ({"accumulate": 10**7}, "accumulate must be a whole number .* to 1,000,000, got"),
        ({"seed": 2**63}, "seed must be a whole number .* to 9,223,372,036,854,775,807"),
        ({"decay": "linear"}, "unknown decay 'linear'.*cosine"),
        ({"precision": "16"}, "unknown precision '16'"),
        ({"warmup": 1.0}, "warmup must be a finite number of at least 0 and below 1, got 1"),
        ({"beta2": -0.1}, "beta2 must be a finite number of at least 0 and below 1, got -0.1"),
        ({"ema": 1.0}, "ema must be a finite number above 0 and below 1, got 1"),
        ({"clip": 0.0}, "clip must be a finite number above 0, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number of at least 0, got -1"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


NUMBERS = [f.name for f in fields(Recipe) if "float" in str(f.type)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_blamed_on_its_own_setting(name, value):
    assert len(NUMBERS) == 10
    given = (0.1, value) if name == "levels" else value
    with pytest.raises(ValueError, match=f"^{name} must be a finite number, got {value}"):
        Recipe(**{name: given})


def test_whole_numbers_of_numpy_are_whole_numbers():
    settings = Recipe(steps=np.int64(7), seed=np.uint8(3))
    assert (settings, type(settings.steps)) == (Recipe(steps=7, seed=3), int)


@given(
    steps=st.integers(1, 60),
    more=st.integers(0, 60),
    done=st.integers(0, 60),
    warmup=st.floats(0, 0.5),
)
def test_two_plans_are_the_same_as_long_as_their_rates_are(steps, more, done, warmup):
    done = min(done, steps)
    for decay in ("cosine", "constant"):
        planned = TrainingSettings(steps=steps, decay=decay, warmup=warmup)
        longer = TrainingSettings(steps=steps + more, decay=decay, warmup=warmup)
        rates = [[learning_rate_factor(i, s) for i in range(done)] for s in (planned, longer)]
        assert same_schedule(longer, steps, done) == (rates[0] == rates[1])
    assert same_schedule(
        TrainingSettings(steps=steps, decay="constant", warmup=0.0), steps + 5, done
    )
