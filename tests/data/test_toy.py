"""Toys: the density integrates to 1, and the samples come from it."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from companion.data import toy

DEFAULTS = [
    toy.RingOfGaussians(),
    toy.GridOfGaussians(),
    toy.Moons(),
    toy.SwissRoll(),
    toy.Pinwheel(),
]
# Blurred enough for a coarse sum over cells to be exact to a few parts in a thousand.
WIDE = [
    toy.RingOfGaussians(modes=5, std=0.2),
    toy.GridOfGaussians(side=3, std=0.2),
    toy.Moons(std=0.2),
    toy.SwissRoll(std=0.2),
    toy.Pinwheel(tangential_std=0.2),
]
BLURRED = [
    toy.Moons(),
    toy.Moons(std=0.04),
    toy.Moons(std=1.0),
    toy.SwissRoll(),
    toy.SwissRoll(std=0.3),
]


points_unchecked = inspect.unwrap(toy._points)


def named(density):
    return type(density).__name__


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cell_width(density):
    if isinstance(density, toy.Pinwheel):
        return 0.2 * min(density.radial_std, density.tangential_std)
    return 0.8 * density.std


def on_a_grid(density, width):
    """Log-densities at cell centres, and the area of a cell."""
    side = math.ceil(2 * density.half_width / width)
    return density.log_prob(toy.grid(density.half_width, side)), (
        2 * density.half_width / side
    ) ** 2


@pytest.mark.parametrize("density", DEFAULTS + WIDE, ids=named)
def test_the_density_integrates_to_one(density):
    # The midpoint rule converges exponentially for a Gaussian: at 0.8 standard deviations to about 1e-13.
    log_p, area = on_a_grid(density, cell_width(density))
    assert float(log_p.exp().sum()) * area == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("density", DEFAULTS, ids=named)
def test_the_mean_log_density_of_samples_is_minus_the_entropy(density):
    log_p, area = on_a_grid(density, cell_width(density))
    minus_entropy = float((log_p.exp() * log_p).sum()) * area
    of_samples = density.log_prob(density.sample(5_000, generator()))
    standard_error = float(of_samples.std()) / math.sqrt(len(of_samples))
    assert abs(float(of_samples.mean()) - minus_entropy) < 4 * standard_error


@pytest.mark.parametrize("density", WIDE, ids=named)
def test_samples_fill_the_cells_as_the_density_says(density):
    blocks, fine, n = 16, 12, 20_000
    a = density.half_width
    log_p = density.log_prob(toy.grid(a, blocks * fine))
    mass = (
        log_p.exp().reshape(blocks, fine, blocks, fine).sum(dim=(1, 3))
        * (2 * a / (blocks * fine)) ** 2
    )
    x = density.sample(n, generator(1)).numpy()
    edges = np.linspace(-a, a, blocks + 1)
    counts, _, _ = np.histogram2d(x[:, 1], x[:, 0], bins=[edges, edges])
    assert counts.sum() == n  # nothing lies outside the square
    expected = (mass.numpy() * n).reshape(-1)
    enough = expected >= 8
    observed = np.append(counts.reshape(-1)[enough], counts.reshape(-1)[~enough].sum())
    predicted = np.append(expected[enough], n - expected[enough].sum())
    assert stats.chisquare(observed, predicted).pvalue > 1e-3
    # The test has teeth: samples of a slightly shifted density fail it.
    shifted, _, _ = np.histogram2d(x[:, 1] + 0.05, x[:, 0], bins=[edges, edges])
    observed = np.append(shifted.reshape(-1)[enough], n - shifted.reshape(-1)[enough].sum())
    assert stats.chisquare(observed, predicted).pvalue < 1e-6


@pytest.mark.parametrize("density", WIDE, ids=named)
@pytest.mark.parametrize("axis", [0, 1])
def test_marginals(density, axis):
    side = 300
    a = density.half_width
    p = density.log_prob(toy.grid(a, side)).exp().reshape(side, side).sum(dim=axis).numpy()
    cdf = np.concatenate([[0], p.cumsum() / p.sum()])
    edges = np.linspace(-a, a, side + 1)
    x = density.sample(4000, generator(2))[:, axis].numpy()
    assert stats.kstest(x, lambda v: np.interp(v, edges, cdf)).pvalue > 1e-3


@pytest.mark.parametrize("density", DEFAULTS, ids=named)
def test_types_shapes_and_repeatability(density):
    x = density.sample(7, generator())
    assert x.shape == (7, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x, density.sample(7, generator()))
    assert not torch.equal(x, density.sample(7, generator(1)))
    assert density.log_prob(x).dtype == torch.float32
    assert density.log_prob(x.double()).dtype == torch.float64
    assert density.sample(0, generator()).shape == (0, 2)
    assert density.log_prob(torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize("density", DEFAULTS, ids=named)
def test_far_away_the_log_density_is_finite(density):
    far = torch.tensor([[50.0, -30.0], [-1000.0, 1000.0]], dtype=torch.float64)
    log_p = density.log_prob(far)
    assert torch.isfinite(log_p).all()
    assert log_p[1] < log_p[0] < -100


@pytest.mark.parametrize("density", DEFAULTS, ids=named)
def test_bad_points_and_counts_are_errors(density):
    with pytest.raises(ValueError, match="1 of 2 points are NaN"):
        density.log_prob(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        density.sample(-1, generator())
    with pytest.raises((TypeError, ValueError)):
        density.log_prob(torch.zeros(3, 3))
    with pytest.raises(TypeError):
        density.log_prob(torch.zeros(3, 2, dtype=torch.int64))


def test_the_checks_of_points_without_a_type_checker():
    with pytest.raises(ValueError, match=r"shape \(n, 2\), got \(3, 3\)"):
        points_unchecked(torch.zeros(3, 3))
    with pytest.raises(TypeError, match="points must be floats"):
        points_unchecked(torch.zeros(3, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toy.RingOfGaussians(modes=0), "modes must be at least 1, got 0"),
        (lambda: toy.RingOfGaussians(std=0.0), "std must be a positive number, got 0.0"),
        (lambda: toy.RingOfGaussians(radius=-1.0), "radius must be a positive number"),
        (lambda: toy.GridOfGaussians(side=0), "side must be at least 1"),
        (lambda: toy.GridOfGaussians(spacing=math.inf), "spacing must be a positive number"),
        (lambda: toy.Moons(std=math.nan), "std must be a positive number, got nan"),
        (lambda: toy.SwissRoll(scale=-1.0), "scale must be a positive number"),
        (lambda: toy.Pinwheel(arms=0), "arms must be at least 1"),
        (lambda: toy.Pinwheel(radial_std=0.0), "radial_std must be a positive number"),
        (lambda: toy.Pinwheel(rate=math.inf), "rate must be a finite number"),
        (lambda: toy.grid(-1.0, 3), "half_width must be a positive number"),
        (lambda: toy.grid(1.0, 0), "side must be at least 1"),
    ],
)
def test_bad_parameters_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_grid_is_row_by_row():
    points = toy.grid(1.0, 2)
    assert points.tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]


# --- Mixtures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", DEFAULTS[:2] + WIDE[:2], ids=named)
def test_mixtures_agree_with_torch(density):
    components = torch.distributions.Independent(
        torch.distributions.Normal(density.means, density.std), 1
    )
    weights = torch.distributions.Categorical(
        logits=torch.zeros(len(density.means), dtype=torch.float64)
    )
    reference = torch.distributions.MixtureSameFamily(weights, components)
    x = (
        torch.rand(500, 2, generator=generator(), dtype=torch.float64) * 2 - 1
    ) * density.half_width
    torch.testing.assert_close(density.log_prob(x), reference.log_prob(x), rtol=1e-11, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(
    modes=st.integers(1, 12),
    radius=st.floats(0.1, 10),
    std=st.floats(0.01, 2),
    turns=st.integers(-3, 3),
    seed=st.integers(0, 100),
)
def test_a_ring_turned_by_whole_steps_is_itself(modes, radius, std, turns, seed):
    ring = toy.RingOfGaussians(modes=modes, radius=radius, std=std)
    x = torch.randn(20, 2, generator=generator(seed), dtype=torch.float64) * radius
    angle = torch.tensor(2 * math.pi * turns / modes, dtype=torch.float64)
    turned = toy._turn(x, angle)
    scale = 1 + ring.log_prob(x).abs().max().item()
    torch.testing.assert_close(ring.log_prob(turned), ring.log_prob(x), rtol=0, atol=1e-11 * scale)


@settings(deadline=None, max_examples=40)
@given(
    side=st.integers(1, 6),
    spacing=st.floats(0.2, 3),
    std=st.floats(0.01, 0.5),
    seed=st.integers(0, 100),
)
def test_responsibilities(side, spacing, std, seed):
    lattice = toy.GridOfGaussians(side=side, spacing=spacing, std=std)
    x = torch.randn(30, 2, generator=generator(seed), dtype=torch.float64) * spacing * side / 2
    shares = lattice.responsibilities(x)
    assert shares.shape == (30, side**2)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(30, dtype=torch.float64))
    distances = torch.cdist(x, lattice.means)
    assert torch.equal(
        torch.take_along_dim(distances, shares.argmax(1)[:, None], 1)[:, 0]
        <= distances.amin(1) + 1e-9,
        torch.ones(30, dtype=torch.bool),
    )


def test_the_modes_are_equally_likely():
    ring = toy.RingOfGaussians()
    modes = ring.responsibilities(ring.sample(16_000, generator())).argmax(dim=1)
    assert stats.chisquare(modes.bincount(minlength=8).numpy()).pvalue > 1e-3


def test_usual_modes():
    assert toy.RingOfGaussians().means.shape == (8, 2)
    assert toy.GridOfGaussians().means.shape == (25, 2)
    torch.testing.assert_close(
        toy.RingOfGaussians().means.norm(dim=1), torch.full((8,), 2.0).double()
    )


# --- Blurred curves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", BLURRED, ids=lambda d: f"{named(d)}-{d.std}")
def test_more_nodes_do_not_change_the_integral(density, monkeypatch):
    x = (
        torch.rand(400, 2, generator=generator(), dtype=torch.float64) * 2 - 1
    ) * density.half_width
    log_p = density.log_prob(x)
    distance = torch.cdist(x, density._nodes[0]).amin(dim=1)
    monkeypatch.setattr(toy, "NODES_PER_PANEL", 60)
    finer = type(density)(std=density.std).log_prob(x)
    error = (log_p - finer).abs()
    near = distance < 12 * density.std
    assert near.any()
    assert error[near].max() < 1e-8
    assert (error / finer.abs().clamp(min=1)).max() < 1e-8


@pytest.mark.parametrize(
    "density", [toy.Moons(), toy.SwissRoll(), toy.SwissRoll(std=0.3)], ids=named
)
def test_the_integral_agrees_with_adaptive_quadrature(density):
    var = density.std**2

    def blurred(t, point):
        if isinstance(density, toy.Moons):
            curve = [(toy._upper_moon, 0.5), (toy._lower_moon, 0.5)]
            at = torch.tensor([t], dtype=torch.float64)
            centres = [(*c(at)[0].tolist(), w / math.pi) for c, w in curve]
        else:
            centres = [
                (
                    density.scale * t * math.cos(t),
                    density.scale * t * math.sin(t),
                    1 / (3 * math.pi),
                )
            ]
        return sum(
            w
            * math.exp(-((point[0] - a) ** 2 + (point[1] - b) ** 2) / (2 * var))
            / (2 * math.pi * var)
            for a, b, w in centres
        )

    low, high = (0, math.pi) if isinstance(density, toy.Moons) else (1.5 * math.pi, 4.5 * math.pi)
    cuts = np.linspace(low, high, 25)
    for x in density.sample(2, generator(3)).double():
        pieces = [
            integrate.quad(blurred, a, b, args=(x.tolist(),), epsabs=1e-13, epsrel=1e-10)[0]
            for a, b in itertools.pairwise(cuts)
        ]
        assert density.log_prob(x[None]).item() == pytest.approx(math.log(sum(pieces)), abs=1e-8)


def test_moons_are_the_shape_of_scikit_learns():
    from sklearn.datasets import make_moons

    theirs, _ = make_moons(4000, noise=0.1, random_state=0)
    theirs = torch.from_numpy(theirs - np.array([0.5, 0.25]))
    ours = toy.Moons().log_prob(toy.Moons().sample(4000, generator()))
    of_theirs = toy.Moons().log_prob(theirs)
    assert abs(float(ours.mean()) - float(of_theirs.mean())) < 4 * math.sqrt(2 / 4000) * float(
        ours.std()
    )


# --- Change of variables ----------------------------------------------------------------------------------


def test_the_twist_keeps_areas_and_is_undone():
    wheel = toy.Pinwheel()

    def twisted(z):
        return toy._turn(z[None], wheel._twist(z[None]))[0]

    for z in torch.randn(20, 2, generator=generator(), dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(twisted, z)
        assert torch.linalg.det(jacobian).item() == pytest.approx(1, abs=1e-10)
        back = toy._turn(twisted(z)[None], -wheel._twist(twisted(z)[None]))[0]
        torch.testing.assert_close(back, z, rtol=0, atol=1e-12)


def test_without_a_twist_the_wheel_is_a_mixture():
    wheel = toy.Pinwheel(arms=2, radial_std=0.2, tangential_std=0.2, rate=0.0)
    ring = toy.RingOfGaussians(modes=2, radius=1.0, std=0.2)
    x = torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(wheel.log_prob(x), ring.log_prob(x))
    torch.testing.assert_close(wheel.responsibilities(x), ring.responsibilities(x))


@pytest.mark.parametrize("density", WIDE, ids=named)
def test_gradients_are_those_of_finite_differences(density):
    points = density.sample(20, generator(4)).double().requires_grad_()
    values = density.log_prob(points)
    torch.testing.assert_close(values, density.log_prob(points.detach()))
    (gradient,) = torch.autograd.grad(values.sum(), points)
    for axis in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[axis] = 1e-5
        above, below = (density.log_prob(points.detach() + s * shift) for s in (1, -1))
        torch.testing.assert_close(gradient[:, axis], (above - below) / 2e-5, rtol=1e-5, atol=1e-5)
