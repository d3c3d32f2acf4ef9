"""Exercises tell empty, wrong and right answers apart."""

import pytest

from companion.display import exercise_check


@exercise_check("0.1")
def double(candidate):
    assert candidate(2) == 4, "2 must give 4"


def unfinished(x): ...


def refuses(x):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda x: 2 * x, "correct"),
        (lambda x: x + 1, "not yet: 2 must give 4"),
        (lambda x: 1 / 0, "not yet: your code raised ZeroDivisionError"),
        (unfinished, "not done yet"),
        (lambda x: ..., "not done yet"),
        (refuses, "not done yet"),
        (None, "not done yet"),
        (..., "not done yet"),
    ],
)
def test_verdicts(answer, expected, capsys):
    double(answer)
    assert capsys.readouterr().out.startswith(f"Exercise 0.1: {expected}")


def test_values_are_checked_as_well(capsys):
    @exercise_check("0.2")
    def check(value):
        if value != 7:
            raise AssertionError

    check(7)
    check(8)
    assert (
        capsys.readouterr().out == "Exercise 0.2: correct.\nExercise 0.2: not yet: a check failed\n"
    )


def test_solution_must_pass(capsys):
    double(lambda x: 2 * x, solution=True)
    assert "passes" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        double(lambda x: x + 1, solution=True)
    with pytest.raises(ZeroDivisionError):
        double(lambda x: 1 / 0, solution=True)
