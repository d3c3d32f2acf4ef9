"""The Fréchet distance against closed forms, SciPy and torchmetrics; streaming; bad input."""

import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torchmetrics.image.fid import FrechetInceptionDistance

from companion.metrics import FeatureStatistics, fid, fid_infinity, frechet_distance

damaged_statistics = runpy.run_path(str(Path(__file__).with_name("damage.py")))[
    "damaged_statistics"
]

fid_unchecked = inspect.unwrap(fid)
distance_unchecked = inspect.unwrap(frechet_distance)
update_unchecked = inspect.unwrap(FeatureStatistics.update)


def features(n: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated features with unequal variances."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    scales = torch.logspace(0, -2, dim, dtype=torch.float64)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return x * scales @ mixing + shift


def by_sqrtm(mu1, sigma1, mu2, sigma2) -> float:
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2 - 2 * np.real(root)))


# ---------------------------------------------------------------- closed forms and oracles


def test_one_dimension():
    """(μ₁ − μ₂)² + (σ₁ − σ₂)²."""
    value = frechet_distance(
        torch.tensor([1.0]), torch.tensor([[4.0]]), torch.tensor([-2.0]), torch.tensor([[25.0]])
    )
    assert value == pytest.approx(9 + 9, abs=1e-12)


def test_commuting_covariances():
    """Σ (√λ₁ − √λ₂)² where the eigenvectors are shared."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    first, second = rng.uniform(0, 5, 30), rng.uniform(0, 5, 30)
    first[:4] = 0
    value = frechet_distance(
        np.zeros(30),
        rotation * first @ rotation.T,
        np.ones(30),
        rotation * second @ rotation.T,
    )
    expected = 30 + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert value == pytest.approx(expected, abs=1e-6)


def test_scaled_copies():
    sigma = torch.cov(features(100, 12, 0).T)
    zero = torch.zeros(12, dtype=torch.float64)
    value = frechet_distance(zero, sigma, zero, 9 * sigma)
    assert value == pytest.approx(4 * float(sigma.trace()), abs=1e-9)


@pytest.mark.parametrize(("dim", "n"), [(2, 50), (16, 400), (64, 1000)])
def test_equals_scipy(dim, n):
    a, b = features(n, dim, 1).numpy(), features(n, dim, 2, shift=0.3).numpy()
    expected = by_sqrtm(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert fid(a, b) == pytest.approx(expected, abs=1e-6)


class Identity(torch.nn.Module):
    """A feature extractor that hands its input through."""

    num_features = 24

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore")  # torchmetrics probes the module with random images
def test_equals_torchmetrics():
    a, b = features(300, 24, 3), features(200, 24, 4, shift=0.1)
    reference = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    for batch in a.split(64):
        reference.update(batch, real=True)
    for batch in b.split(64):
        reference.update(batch, real=False)
    assert fid(a, b) == pytest.approx(float(reference.compute()), abs=1e-6)


# ---------------------------------------------------------------- properties


def test_a_set_and_itself():
    a = features(500, 64, 5)
    assert fid(a, a) == pytest.approx(0, abs=1e-9)
    assert fid(a[:20], a[:20]) == pytest.approx(0, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(2, 30),
    st.integers(2, 30),
    st.integers(0, 1000),
    st.floats(0.01, 100),
)
def test_symmetric_nonnegative_and_quadratic_in_scale(dim, n, m, seed, scale):
    a, b = features(n, dim, seed), features(m, dim, seed + 1, shift=0.5)
    value = fid(a, b)
    assert value >= 0
    assert fid(b, a) == pytest.approx(value, rel=1e-7, abs=1e-9)
    assert fid(scale * a, scale * b) == pytest.approx(scale**2 * value, rel=1e-6, abs=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 10), st.integers(0, 1000))
def test_moving_and_turning_both_sets_changes_nothing(dim, seed):
    a, b = features(40, dim, seed), features(40, dim, seed + 1)
    rotation = torch.linalg.qr(features(dim, dim, seed + 2) + torch.eye(dim)).Q
    moved = fid(a @ rotation + 7, b @ rotation + 7)
    assert moved == pytest.approx(fid(a, b), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 9), (20, 500)])
def test_fewer_samples_than_dimensions(n, m):
    """Against the eigenvalues of the small Gram matrix XcYcᵀ, a closed form that needs no D×D matrix."""
    a, b = features(n, 100, 6), features(m, 100, 7)
    centred_a = (a - a.mean(0)) / (n - 1) ** 0.5
    centred_b = (b - b.mean(0)) / (m - 1) ** 0.5
    root_trace = torch.linalg.matrix_norm(centred_a @ centred_b.T, ord="nuc")
    expected = (
        (a.mean(0) - b.mean(0)).square().sum()
        + centred_a.square().sum()
        + centred_b.square().sum()
        - 2 * root_trace
    )
    assert fid(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_both_ways_to_the_trace_agree():
    module = sys.modules[FeatureStatistics.__module__]
    a, b = (np.cov(features(300, 40, seed).numpy().T) for seed in (0, 1))
    fast, general = module._root_trace_definite(a, b), module._root_trace_semidefinite(a, b)
    assert fast == pytest.approx(general, rel=1e-9)
    # One null direction in either covariance, and the fast way leaves it to the general one.
    flat = a.copy()
    flat[0] = flat[:, 0] = 0
    assert module._root_trace_definite(a, flat) is None
    assert module._root_trace_definite(flat, a) is None


def test_a_large_mean_costs_no_digits():
    a, b = features(300, 8, 8), features(300, 8, 9)
    assert fid(a + 1e5, b + 1e5) == pytest.approx(fid(a, b), abs=1e-6)


def test_half_precision_features_are_taken():
    a, b = features(50, 4, 0), features(50, 4, 1)
    assert fid(a.half(), b.half()) == pytest.approx(fid(a, b), rel=0.05)


# ---------------------------------------------------------------- streaming


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 1000))
def test_streaming_equals_batch(sizes, seed):
    x = features(sum(sizes) + 1, 5, seed, shift=1000.0)
    statistics = FeatureStatistics(5)
    for batch in x.split([*sizes, 1]):
        statistics.update(batch)
    assert statistics.count == len(x)
    torch.testing.assert_close(statistics.mean, x.mean(0), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(statistics.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-9)


def test_a_batch_larger_than_a_chunk():
    x = features(10_000, 3, 0)
    torch.testing.assert_close(FeatureStatistics.of(x).covariance, torch.cov(x.T))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(2, 20), st.integers(0, 1000))
def test_merging_is_associative_and_commutes(n, m, k, seed):
    x = features(n + m + k, 4, seed)
    parts = x.split([n, m, k])

    def statistics(*indices):
        merged = FeatureStatistics(4)
        for i in indices:
            merged.merge(
                FeatureStatistics(4).update(parts[i]) if len(parts[i]) else FeatureStatistics(4)
            )
        return merged

    left = statistics(0, 1).merge(statistics(2))
    right = statistics(2).merge(statistics(1, 0))
    torch.testing.assert_close(left.covariance, right.covariance)
    torch.testing.assert_close(left.covariance, torch.cov(x.T))
    assert left.count == right.count == n + m + k


def test_merging_with_itself_counts_twice():
    x = features(30, 3, 0)
    statistics = FeatureStatistics.of(x)
    statistics.merge(statistics)
    assert statistics.count == 60
    torch.testing.assert_close(statistics.covariance, torch.cov(x.repeat(2, 1).T))


def test_fid_of_statistics_is_fid_of_features():
    a, b = features(80, 6, 0), features(90, 6, 1)
    assert fid(FeatureStatistics.of(a), b) == pytest.approx(fid(a, b), abs=1e-12)


def test_state_travels():
    x = features(40, 3, 0)
    state = FeatureStatistics.of(x[:25]).state_dict()
    resumed = FeatureStatistics(3).load_state_dict(state).update(x[25:])
    torch.testing.assert_close(resumed.covariance, torch.cov(x.T))


def test_what_is_returned_is_a_copy():
    statistics = FeatureStatistics.of(features(40, 3, 0))
    before = statistics.covariance
    statistics.mean.zero_()
    statistics.state_dict()["scatter"].zero_()
    torch.testing.assert_close(statistics.covariance, before)


TWO_PROCESSES = """
import json, os, sys
import torch
import torch.distributed as dist
from companion.metrics import FeatureStatistics

# The second one is forked, as to start and to import takes longer than all the rest.
child = os.fork()
rank, store = int(child == 0), sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
x = torch.arange(150, dtype=torch.float64).view(50, 3) ** 1.5 + 100
statistics = FeatureStatistics.of((x[:11], x[11:])[rank]).all_reduce()
found = [statistics.count, statistics.mean.tolist(), statistics.covariance.tolist()]
with open(f"{store}.{rank}", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_all_processes_together(tmp_path):
    store = tmp_path / "store"
    subprocess.run([sys.executable, "-c", TWO_PROCESSES, store], timeout=200, check=True)
    x = torch.arange(150, dtype=torch.float64).view(50, 3) ** 1.5 + 100
    for rank in range(2):
        count, mean, covariance = json.loads((tmp_path / f"store.{rank}").read_text())
        assert count == 50
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(covariance, torch.cov(x.T), rtol=1e-9)


# ---------------------------------------------------------------- extrapolation


def test_extrapolation_removes_most_of_the_bias(generator):
    real = torch.randn(20_000, 16, generator=generator)
    fake = torch.randn(2_000, 16, generator=generator)
    result = fid_infinity(real, fake, generator)
    assert result.slope > 0
    assert len(result.sizes) == len(result.distances) == 15
    assert abs(result.value) < 0.3 * fid(real, fake[:500])


def test_extrapolation_is_a_straight_line_through_its_points(generator):
    real, fake = features(100, 3, 0), features(100, 3, 1)
    result = fid_infinity(real, fake, generator, sizes=(20, 100))
    for size, distance in zip(result.sizes, result.distances, strict=True):
        assert result.value + result.slope / size == pytest.approx(distance, abs=1e-9)
    assert result.distances[-1] == pytest.approx(fid(real, fake), abs=1e-12)


@pytest.mark.parametrize("sizes", [(50,), (1, 50), (50, 101), (50, 50)])
def test_extrapolation_refuses_sizes(sizes, generator):
    x = features(100, 3, 0)
    with pytest.raises(ValueError, match="two different numbers from 2 to the 100"):
        fid_infinity(x, x, generator, sizes=sizes)


# ---------------------------------------------------------------- bad input


GOOD = features(20, 3, 0)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (GOOD[0], ValueError, r"features_b must have the shape \(n, d\)"),
        (GOOD[:0], ValueError, r"is empty: its shape is \(0, 3\)"),
        (GOOD[:1], ValueError, "features_b has 1 sample; a covariance needs at least two"),
        (GOOD[:, :2], ValueError, "3 dimensions and features_b 2"),
        (GOOD.long(), TypeError, "floating-point"),
        (GOOD.bool(), TypeError, "floating-point"),
        ("digits", TypeError, "tensor or a NumPy array, got str"),
        (
            torch.zeros(8, 1, 28, 28),
            ValueError,
            r"features_b .* are images.*digit_features\(images\)",
        ),
        (torch.zeros(8, 3, 9, 9).byte(), ValueError, r"are images.*digit_features\(images\)"),
        (GOOD.double() * 1e200, ValueError, r"features holds values up to .*e\+200, too large"),
        (GOOD * torch.tensor([1, 1, float("nan")]), ValueError, "NaN or infinite"),
        (torch.cat([GOOD, torch.full((1, 3), torch.inf)]), ValueError, "3 NaN or infinite"),
    ],
)
def test_bad_features(bad, error, message):
    with pytest.raises(error, match=message):
        fid_unchecked(GOOD, bad)


def test_bad_covariances():
    zero, eye = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        distance_unchecked(zero, eye, np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match=r"sigma2 must have the shape \(2, 2\)"):
        distance_unchecked(zero, eye, zero, np.eye(3))
    with pytest.raises(ValueError, match="sigma1 is not symmetric"):
        frechet_distance(zero, np.array([[1.0, 0.5], [0, 1]]), zero, eye)
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(zero, eye * np.nan, zero, eye)
    with pytest.raises(ValueError, match="mu2 must have the shape"):
        distance_unchecked(zero, eye, eye, eye)


@pytest.mark.parametrize(
    "indefinite", [[[1, 2], [2, 1]], [[0, 1], [1, 0]], [[-1, 0], [0, -1]], [[1, 0], [0, -0.1]]]
)
def test_matrices_that_are_no_covariance(indefinite):
    matrix = np.array(indefinite, dtype=float)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), matrix)


def test_no_variance_at_all_is_allowed():
    zero = np.zeros((2, 2))
    assert frechet_distance(np.zeros(2), zero, np.ones(2), np.eye(2)) == pytest.approx(4)
    assert frechet_distance(np.zeros(2), zero, np.ones(2), zero) == pytest.approx(2)


def test_a_bad_batch_leaves_the_statistics_as_they_were():
    statistics = FeatureStatistics.of(GOOD)
    before = statistics.covariance
    bad = torch.cat([features(5000, 3, 1), torch.full((1, 3), torch.nan)])
    with pytest.raises(ValueError, match="NaN"):
        statistics.update(bad)
    assert statistics.count == 20
    torch.testing.assert_close(statistics.covariance, before)


def test_statistics_refuse():
    with pytest.raises(ValueError, match="dim must be at least 1"):
        FeatureStatistics(0)
    with pytest.raises(ValueError, match="no samples yet"):
        _ = FeatureStatistics(2).mean
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        _ = FeatureStatistics(2).update(torch.zeros(1, 2)).covariance
    with pytest.raises(ValueError, match=r"\(n, 2\), got \(4, 3\)"):
        FeatureStatistics(2).update(torch.zeros(4, 3))
    with pytest.raises(TypeError, match="floating-point"):
        update_unchecked(FeatureStatistics(2), torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 dimensions cannot join those of 2"):
        FeatureStatistics(2).merge(FeatureStatistics(3))
    with pytest.raises(ValueError, match="count, mean and scatter"):
        FeatureStatistics(2).load_state_dict({"mean": torch.zeros(2)})
    with pytest.raises(ValueError, match="dimensions"):
        FeatureStatistics(2).load_state_dict(FeatureStatistics(3).state_dict())


# ---------------------------------------------------------------- extreme scales


@settings(max_examples=25, deadline=None)
@given(st.integers(-500, 500), st.integers(1, 8), st.integers(0, 999), st.booleans())
def test_any_scale_that_float64_holds_gives_the_scaled_distance(exponent, dim, seed, singular):
    """Products of such covariances overflow, or vanish; 2^−500 … 2^500 squared is 1e−301 … 1e301."""
    n = 1 + dim // 2 if singular else 50
    a, b = features(max(n, 2), dim, seed).numpy(), features(max(n, 2), dim, seed + 1, 0.3).numpy()
    (mu1, sigma1), (mu2, sigma2) = ((x.mean(0), np.cov(x.T).reshape(dim, dim)) for x in (a, b))
    plain = frechet_distance(mu1, sigma1, mu2, sigma2)
    scale = 2.0**exponent
    scaled = frechet_distance(
        scale * mu1, scale * scale * sigma1, scale * mu2, scale * scale * sigma2
    )
    assert scaled == pytest.approx(plain * scale * scale, rel=1e-9)


def test_covariances_of_very_different_scale():
    """Commuting ones: Σ (√λ₁ − √λ₂)²."""
    big, small = 1e200 * np.eye(3), 1e-200 * np.eye(3)
    zero = np.zeros(3)
    assert frechet_distance(zero, big, zero, small) == pytest.approx(3e200, rel=1e-12)
    assert frechet_distance(zero, big, zero, big) <= 1e190


@pytest.mark.parametrize(
    "arguments",
    [
        (np.full(2, 1e200), np.eye(2), np.zeros(2), np.eye(2)),
        (np.zeros(2), 1e308 * np.eye(2), np.zeros(2), 1e308 * np.eye(2)),
    ],
)
def test_a_distance_beyond_float64_is_an_error(arguments):
    with pytest.raises(ValueError, match="too large to compute with"):
        frechet_distance(*arguments)


def test_features_too_large_leave_the_statistics_as_they_were():
    statistics = FeatureStatistics.of(GOOD)
    with pytest.raises(ValueError, match="too large"):
        statistics.update(torch.tensor([[1e150, 0.0, 0.0]], dtype=torch.float64))
    assert statistics.count == 20


# ---------------------------------------------------------------- saved statistics


def test_a_file_gives_the_statistics_back(tmp_path):
    statistics = FeatureStatistics.of(features(40, 3, 0))
    statistics.save(tmp_path / "reference.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "reference.safetensors")
    assert loaded.count == 40
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.covariance, statistics.covariance)


BROKEN = [
    ({"count": torch.tensor(-3)}, "count of samples is negative: -3"),
    ({"count": torch.tensor([20])}, "dimensions"),
    ({"count": torch.tensor(20.0)}, "count must be a tensor of torch.int64"),
    ({"count": 20}, "count must be a tensor of torch.int64, got int"),
    ({"count": torch.tensor(0)}, "numbers that 0 samples cannot have"),
    ({"count": torch.tensor(1)}, "numbers that 1 samples cannot have"),
    ({"mean": torch.zeros(3)}, "mean must be a tensor of torch.float64, got torch.float32"),
    ({"mean": torch.full((3,), torch.nan).double()}, "NaN or infinite"),
    ({"scatter": torch.full((3, 3), torch.inf).double()}, "NaN or infinite"),
    ({"scatter": -torch.eye(3).double()}, "not symmetric, or its diagonal is negative"),
    ({"scatter": torch.ones(3, 3).double().triu()}, "not symmetric"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_states_that_no_samples_have(change, message):
    statistics = FeatureStatistics.of(GOOD)
    before = statistics.state_dict()
    with pytest.raises(ValueError, match=message):
        statistics.load_state_dict(before | change)
    after = statistics.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no statistics",
        save({"mean": torch.zeros(2).double()}),
        save({"weights": torch.zeros(2)}),
        save(FeatureStatistics(2).state_dict()),  # no hash
    ],
)
def test_files_that_hold_no_statistics(tmp_path, content):
    path = tmp_path / "reference.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"reference\.safetensors holds no feature statistics"):
        FeatureStatistics.load(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        FeatureStatistics.load(tmp_path / "none")


def test_500_damaged_files_are_found(tmp_path):
    survived = damaged_statistics(tmp_path / "reference.safetensors", range(500))
    assert survived == []
