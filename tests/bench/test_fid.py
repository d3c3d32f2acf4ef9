"""Speed of the Fréchet distance beside its peers, and memory of streaming statistics: ratios within one run.

Run with `make bench`. Absolute times depend on the machine and on what else it does; the ratios hardly do.
"""

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid

from companion.metrics import FeatureStatistics, frechet_distance

DIM = 2048


def gaussian(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of 5,000 correlated samples with a decaying spectrum, as of real features."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((DIM, DIM)) / DIM**0.5
    x = rng.standard_normal((5000, DIM)) * np.logspace(0, -1.5, DIM) @ mixing
    return x.mean(axis=0), np.cov(x.T)


@pytest.fixture(scope="module")
def gaussians() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return gaussian(0) + gaussian(1)


def seconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Returns the shortest time of some runs, and the value."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = function()
        times.append(time.perf_counter() - start)
    return min(times), float(value)


def by_sqrtm(mu1, sigma1, mu2, sigma2) -> float:
    root = np.real(scipy.linalg.sqrtm(sigma1 @ sigma2))
    return np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root)


@pytest.mark.timeout(900)
def test_frechet_distance_at_2048_dimensions(gaussians, record_property, capsys):
    ours, value = seconds(lambda: frechet_distance(*gaussians), repeats=3)
    tensors = [torch.from_numpy(a) for a in gaussians]
    torchmetrics, theirs = seconds(lambda: _compute_fid(*tensors), repeats=2)
    # In turns, so that whatever else the machine does at one moment does not decide.
    ours = min(ours, seconds(lambda: frechet_distance(*gaussians), repeats=3)[0])
    sqrtm, scipys = seconds(lambda: by_sqrtm(*gaussians), repeats=1)
    ours = min(ours, seconds(lambda: frechet_distance(*gaussians), repeats=3)[0])
    for name, ratio in (("torchmetrics", torchmetrics / ours), ("sqrtm", sqrtm / ours)):
        record_property(f"{name} / ours", round(ratio, 2))
    with capsys.disabled():
        print(
            f"\nFréchet distance, {DIM}-d: ours {ours:.2f} s; torchmetrics {torchmetrics:.2f} s "
            f"({torchmetrics / ours:.1f} ×); scipy.linalg.sqrtm {sqrtm:.2f} s ({sqrtm / ours:.1f} ×)"
        )
    assert value == pytest.approx(theirs, abs=1e-6)
    assert value == pytest.approx(scipys, abs=1e-6)
    assert sqrtm >= 10 * ours
    assert torchmetrics >= ours


def test_fewer_samples_are_faster(gaussians, capsys):
    """500 samples in 2048 dimensions: factors of 499 columns, so no 2048-d eigenproblem at all."""
    generator = torch.Generator().manual_seed(0)
    few = [FeatureStatistics.of(torch.randn(500, DIM, generator=generator)) for _ in range(2)]
    low_rank = [statistic for part in few for statistic in (part.mean, part.covariance)]
    full, short = [], []
    for _ in range(5):  # in turns, so that whatever else the machine does meets both
        full.append(seconds(lambda: frechet_distance(*gaussians), repeats=1)[0])
        short.append(seconds(lambda: frechet_distance(*low_rank), repeats=1)[0])
    with capsys.disabled():
        print(
            f"\nFréchet distance of rank 499: {min(short) / min(full):.2f} of the full rank's time"
        )
    assert min(short) < min(full)


PEAK = """
import re, sys
import torch
from companion.metrics import FeatureStatistics

batches, dim = int(sys.argv[1]), 512
generator = torch.Generator().manual_seed(0)
statistics = FeatureStatistics(dim)
for _ in range(batches):
    statistics.update(torch.randn(500, dim, generator=generator))
assert statistics.count == 500 * batches
# Not ru_maxrss, which a child inherits from the process that started it.
status = open("/proc/self/status").read()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
"""


def peak_megabytes(batches: int) -> float:
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(batches)], capture_output=True, text=True, check=True
    )
    return float(result.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads the peak from /proc, as Linux has it"
)
def test_memory_of_streaming_does_not_grow_with_the_number_of_samples(capsys):
    few, many = peak_megabytes(20), peak_megabytes(400)
    held = 200_000 * 512 * 4 / 2**20
    with capsys.disabled():
        print(
            f"\nStreaming statistics, 512-d: peak {few:.0f} MB for 10,000 samples, {many:.0f} MB for 200,000 "
            f"(the samples alone would take {held:.0f} MB)"
        )
    assert many - few < 0.05 * held
