"""How thorough a benchmark is."""

import os
from collections.abc import Callable

import pytest

QUICK = os.environ.get("BENCH_QUICK") == "1"


@pytest.fixture
def rounds() -> Callable[[int], int]:
    """Gives how often to repeat: as often as asked, or with `make bench QUICK=1` a twentieth of it, and once at least.

    For counts of kills and of damaged inputs. What is timed is timed as often in either case, or the bounds on ratios
    would be bounds on noise.
    """

    def choose(times: int) -> int:
        return max(1, times // 20) if QUICK else times

    return choose
