"""Exercises that check themselves."""

import functools
from collections.abc import Callable
from typing import Any


class _NotDoneError(Exception):
    """The reader's function still returns nothing."""


def _watch(candidate: Any) -> Any:
    """Wraps a function so that an empty answer is told apart from a wrong one."""
    if candidate is None or candidate is Ellipsis:
        raise _NotDoneError
    if not callable(candidate):
        return candidate

    @functools.wraps(candidate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = candidate(*args, **kwargs)
        if result is None or result is Ellipsis:
            raise _NotDoneError
        return result

    return watched


def exercise_check(number: str) -> Callable[[Callable[[Any], None]], Callable[..., None]]:
    """Turns a function full of assertions into a check that tells the reader how it went.

    The check prints one line: "not done yet" while the answer is empty (`None`, `...` or
    `NotImplementedError`), "correct", or "not yet" and why. Called with `solution=True`, as the book does with
    its own solution, it raises whatever goes wrong.

    Args:
        number: the exercise's number, such as "3.2".

    Returns:
        A decorator for a function that takes the candidate and asserts.
    """

    def decorate(check: Callable[[Any], None]) -> Callable[..., None]:
        @functools.wraps(check)
        def run(candidate: Any, *, solution: bool = False) -> None:
            if solution:
                check(_watch(candidate))
                print(f"Exercise {number}: the solution passes the check.")
                return
            try:
                check(_watch(candidate))
            except (_NotDoneError, NotImplementedError):
                print(f"Exercise {number}: not done yet.")
            except AssertionError as error:
                print(f"Exercise {number}: not yet: {str(error) or 'a check failed'}")
            except Exception as error:
                # Whatever the reader's code raises belongs to the answer, not to the book.
                print(
                    f"Exercise {number}: not yet: your code raised {type(error).__name__}: {error}"
                )
            else:
                print(f"Exercise {number}: correct.")

        return run

    return decorate
