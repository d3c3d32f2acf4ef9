"""Checks name the thing, its value and the remedy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion import checks


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(0, 20))
def test_whole_numbers_within_limits_pass_and_others_do_not(value, least, width):
    allowed = least <= value <= least + width
    for call in (lambda: checks.whole(least, least + width, thing=value),):
        if allowed:
            call()
        else:
            with pytest.raises(
                ValueError, match=rf"thing must be a whole number from .* got {value}\."
            ):
                call()


@pytest.mark.parametrize("value", [True, 1.0, "1", None, math.nan])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(ValueError, match="thing must be a whole number of at least 0, got"):
        checks.whole(0, thing=value)


@pytest.mark.parametrize(
    ("limits", "good", "bad", "message"),
    [
        (
            (0,),
            [0, 0.5, 3],
            [-0.1, math.nan, math.inf, "1", None, True],
            "a finite number of at least 0, got",
        ),
        ((0, 1), [0, 0.99], [1, -1], "a finite number of at least 0 and below 1, got"),
        ((), [-1e30, 0], [math.inf, -math.inf], "a finite number, got"),
    ],
)
def test_numbers_within_limits_pass_and_others_are_named(limits, good, bad, message):
    for value in good:
        checks.number(*limits, thing=value)
    for value in bad:
        with pytest.raises(ValueError, match=f"thing must be {message}"):
            checks.number(*limits, thing=value)


def test_a_number_may_have_to_be_above_a_limit():
    checks.number(above=0, thing=1e-9)
    with pytest.raises(ValueError, match="thing must be a finite number above 0, got 0"):
        checks.number(above=0, thing=0)


def test_flags_and_names():
    checks.flag(thing=True)
    with pytest.raises(ValueError, match="thing must be True or False, got 1"):
        checks.flag(thing=1)
    checks.one_of(["hinge", "minimax"], loss="hinge")
    with pytest.raises(ValueError, match=r"unknown loss 'hing'\. Did you mean 'hinge'"):
        checks.one_of(["hinge", "minimax"], loss="hing")


def test_codes_of_another_length_or_kind():
    checks.codes(torch.zeros(2, 3), 3, "decoder")
    with pytest.raises(
        ValueError, match=r"decoder takes codes of 4 numbers, .* got the shape \(2, 3\)"
    ):
        checks.codes(torch.zeros(2, 3), 4, "decoder")
    with pytest.raises(TypeError, match="codes of floats, got int64"):
        checks.codes(torch.zeros(2, 3, dtype=torch.int64), 3, "decoder")
