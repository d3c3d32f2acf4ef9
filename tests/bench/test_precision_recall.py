"""What exact decisions cost: precision and recall beside the same by products alone, as ratios within one run."""

import os
import time
from collections.abc import Callable

import pytest
import torch

from companion.metrics import nearest_neighbours, precision_recall

QUICK = os.environ.get("BENCH_QUICK") == "1"
CHUNK = 1024
# A minute and a half, and the ratio of 4,000 over again.
LARGE = pytest.param(10_000, 2, marks=pytest.mark.skipif(QUICK, reason="only without QUICK=1"))


def by_products(a: torch.Tensor, b: torch.Tensor):
    """‖a‖² + ‖b‖² − 2ab in chunks of rows, exact or not."""
    norm_a, norm_b = a.square().sum(1), b.square().sum(1)
    for rows, norm in zip(a.split(CHUNK), norm_a.split(CHUNK), strict=True):
        scale = norm[:, None] + norm_b
        squared = torch.addmm(scale, rows, b.T, alpha=-2)
        yield torch.where(squared <= 1e-13 * scale, 0.0, squared)


def plain(real: torch.Tensor, fake: torch.Tensor, k: int = 3) -> tuple[float, float]:
    def share(points, centres):
        radii = torch.cat([r.kthvalue(k + 1, 1).values for r in by_products(centres, centres)])
        return sum(int((r <= radii).any(1).sum()) for r in by_products(points, centres)) / len(
            points
        )

    return share(fake, real), share(real, fake)


def plain_nearest(queries: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.cat([r.min(1).values for r in by_products(queries, reference)]).sqrt()


def seconds(function: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("n", "repeats"), [(1000, 7), (4000, 3), LARGE])
def test_exact_decisions_cost_at_most_half_as_much_again(n, repeats, capsys):
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(n, 64, generator=generator, dtype=torch.float64)
    fake = 0.9 * torch.randn(n, 64, generator=generator, dtype=torch.float64)
    for name, ours, theirs in (
        ("precision and recall", precision_recall, plain),
        ("nearest neighbours", lambda a, b: nearest_neighbours(a, b).distances, plain_nearest),
    ):
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):  # in turns, so that whatever else the machine does meets both
            for key, function in (("ours", ours), ("theirs", theirs)):
                spent, value = seconds(lambda function=function: function(real, fake))
                times[key].append(spent)
                found = torch.as_tensor(value, dtype=torch.float64)
                if key == "ours":
                    first = found
        torch.testing.assert_close(first, found, rtol=1e-9, atol=1e-9)
        ratio = min(times["ours"]) / min(times["theirs"])
        with capsys.disabled():
            print(f"\n{name}, {n:,} × 64: {ratio:.2f} of the time by products alone")
        assert ratio <= 1.5
