"""GANs: losses and penalties against closed forms, the known optimum of the game, networks, small tasks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from companion.data import load
from companion.gan import (
    GAN,
    LOSSES,
    TASKS,
    AdversarialGame,
    Discriminator,
    GANConfig,
    Generator,
    ImageToImage,
    ImageToImageConfig,
    bolder,
    coarser,
    gradient_penalty,
    noisier,
    r1_penalty,
    with_a_hole,
)
from companion.randomness import uniform
from companion.training import Objective, Phase, Trainer, TrainingSettings


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_gaussians(points=20_001):
    """Points of N(−1, 1) and N(1, 1.5²), evenly spread in probability, and the logit of the best discriminator."""
    p, q = torch.distributions.Normal(-1.0, 1.0), torch.distributions.Normal(1.0, 1.5)
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return p.icdf(u), q.icdf(u), lambda x: p.log_prob(x) - q.log_prob(x)


def jensen_shannon():
    """JSD(p, q) in nats by quadrature."""
    x = torch.linspace(-12, 14, 200_001, dtype=torch.float64)
    p = torch.distributions.Normal(-1.0, 1.0).log_prob(x).exp()
    q = torch.distributions.Normal(1.0, 1.5).log_prob(x).exp()
    m = (p + q) / 2

    def kl(a):
        return torch.trapezoid(torch.xlogy(a, a / m.clamp(min=1e-300)), x)

    return (kl(p) + kl(q)) / 2


# --- The game and its optimum --------------------------------------------------------------


def test_at_the_best_discriminator_the_loss_is_log_4_minus_twice_jsd():
    real, fake, best = two_gaussians()
    value = LOSSES["non-saturating"].discriminator(best(real), best(fake))
    assert float(value) == pytest.approx(float(math.log(4) - 2 * jensen_shannon()), abs=1e-4)


@given(a=st.floats(-1, 1), b=st.floats(-1, 1), c=st.floats(-0.3, 0.3))
@settings(deadline=None, max_examples=40)
def test_no_discriminator_does_better(a, b, c):
    real, fake, best = two_gaussians(2001)

    def other(x):
        return best(x) + a + b * x + c * x.square()

    loss = LOSSES["minimax"].discriminator
    assert loss(other(real), other(fake)) >= loss(best(real), best(fake)) - 1e-4


def test_where_the_two_agree_the_loss_is_log_4():
    zeros = torch.zeros(5)
    assert float(LOSSES["minimax"].discriminator(zeros, zeros)) == pytest.approx(math.log(4))


def test_a_trained_discriminator_finds_the_optimum():
    """A quadratic logit contains the best one: log N − log N is a parabola."""
    real, fake, best = two_gaussians(2001)
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def logits(x):
        return weights[0] + weights[1] * x + weights[2] * x.square()

    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = LOSSES["minimax"].discriminator(logits(real), logits(fake))
        loss.backward()
        return loss

    optimiser.step(closure)
    x = torch.tensor([-3.0, -1, 0, 1, 3], dtype=torch.float64)
    torch.testing.assert_close(logits(x).detach(), best(x), atol=0.02, rtol=0)


def test_logits_mean_probabilities():
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.5, -0.1, 0.0])
    expected = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    for name in ("minimax", "non-saturating"):
        torch.testing.assert_close(LOSSES[name].discriminator(real, fake), expected)
    torch.testing.assert_close(LOSSES["minimax"].generator(fake), (1 - fake.sigmoid()).log().mean())
    torch.testing.assert_close(
        LOSSES["non-saturating"].generator(fake), -fake.sigmoid().log().mean()
    )


def test_hinge_leaves_alone_who_is_right_by_one():
    loss = LOSSES["hinge"].discriminator
    assert float(loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -7.0]))) == 0.0
    assert float(loss(torch.tensor([0.0]), torch.tensor([0.5]))) == pytest.approx(2.5)


@pytest.mark.parametrize(("name", "slope"), [("minimax", 4.5e-5), ("non-saturating", 1.0)])
def test_where_the_discriminator_is_sure_only_one_gradient_dies(name, slope):
    logits = torch.full((4,), -10.0, requires_grad=True)
    LOSSES[name].generator(logits).backward()
    assert float(logits.grad.abs().sum()) == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_overflows(name):
    huge = torch.tensor([1e4, -1e4], requires_grad=True)
    pair = LOSSES[name]
    (
        pair.discriminator(huge, -huge) + pair.discriminator(-huge, huge) + pair.generator(huge)
    ).backward()
    assert torch.isfinite(huge.grad).all()


@given(eta=st.floats(0.01, 0.9), angle=st.floats(0, 6.28))
@settings(deadline=None, max_examples=30)
def test_simultaneous_steps_on_the_bilinear_game_spiral_outwards(eta, angle):
    """The critic ψ·x against a point at θ, data at 0: the radius grows by √(1 + η²) a step."""
    state = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    theta, psi = (s.clone().requires_grad_() for s in state)
    pair = LOSSES["wasserstein"]
    told = pair.discriminator(psi * torch.zeros(1), (psi * theta.detach())[None])
    fooled = pair.generator((psi.detach() * theta)[None])
    (d_psi,) = torch.autograd.grad(told, psi)
    (d_theta,) = torch.autograd.grad(fooled, theta)
    radius = torch.hypot(theta - eta * d_theta, psi - eta * d_psi)
    assert float(radius.detach()) == pytest.approx(math.sqrt(1 + eta**2), rel=1e-9)


# --- Penalties --------------------------------------------------------------


def test_penalties_of_a_linear_critic():
    """Its slope is w everywhere."""
    w = torch.randn(1, 3, 4, generator=seeded())
    x, y = torch.randn(2, 5, 1, 3, 4, generator=seeded(1))
    norm = w.norm()

    def critic(x):
        return (w * x).sum(dim=(1, 2, 3))

    found = gradient_penalty(critic, x, y, seeded())
    torch.testing.assert_close(found, (norm - 1).square())
    torch.testing.assert_close(r1_penalty(critic, x), norm.square() / 2)


def test_the_penalty_is_taken_on_the_line_at_one_place_a_pair():
    """For ½‖x‖² the slope is x itself."""
    x, y = torch.randn(2, 6, 1, 3, 4, generator=seeded(1))
    eps = uniform((6,), seeded(5))[:, None, None, None]
    between = eps * x + (1 - eps) * y
    expected = (between.flatten(1).norm(dim=1) - 1).square().mean()
    found = gradient_penalty(lambda x: 0.5 * x.square().sum(dim=(1, 2, 3)), x, y, seeded(5))
    torch.testing.assert_close(found, expected)
    r1 = r1_penalty(lambda x: 0.5 * x.square().sum(dim=(1, 2, 3)), x)
    torch.testing.assert_close(r1, 0.5 * x.flatten(1).square().sum(dim=1).mean())


def test_the_penalty_s_own_gradient_equals_finite_differences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 1))
    x, y = torch.randn(2, 7, 3)

    def penalty():
        return gradient_penalty(lambda x: net(x).squeeze(1), x, y, seeded(2))

    penalty().backward()
    weight = net[0].weight
    direction, step = torch.randn_like(weight), 1e-2
    analytic = (weight.grad * direction).sum()
    with torch.no_grad():
        weight.add_(step * direction)
        above = penalty()
        weight.sub_(2 * step * direction)
        below = penalty()
    assert float(analytic) == pytest.approx(float((above - below) / (2 * step)), rel=2e-2, abs=1e-3)


def test_a_flat_critic_has_a_finite_gradient():
    w = torch.zeros(3, requires_grad=True)
    gradient_penalty(lambda x: x @ w, torch.ones(2, 3), -torch.ones(2, 3), seeded()).backward()
    assert torch.isfinite(w.grad).all()


# --- Networks --------------------------------------------------------------


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [0, 10])
def test_networks_of_all_sizes(size, channels, classes):
    torch.manual_seed(0)
    labels = (torch.arange(4) if classes else None,)
    images = Generator(8, channels, size, 4, classes)(torch.randn(4, 8), *labels)
    assert images.shape == (4, channels, size, size)
    assert images.abs().max() <= 1
    assert Discriminator(channels, size, 4, classes)(images, *labels).shape == (4,)


def test_labels_matter_to_both():
    torch.manual_seed(0)
    generator, judge = Generator(8, width=4, classes=3), Discriminator(width=4, classes=3)
    z, x = torch.randn(2, 8), torch.randn(2, 1, 28, 28)
    a, b = torch.tensor([0, 0]), torch.tensor([0, 2])
    generator.eval()
    judge.eval()
    assert torch.equal(generator(z, a)[0], generator(z, b)[0])
    assert not torch.allclose(generator(z, a)[1], generator(z, b)[1])
    assert not torch.allclose(judge(x, a)[1], judge(x, b)[1])
    with pytest.raises(ValueError, match="has 3 classes: give each sample's label"):
        generator(z)
    with pytest.raises(ValueError, match="built without classes: leave the labels out"):
        Discriminator(width=4)(x, a)


def test_spectral_norm_bounds_every_layer():
    torch.manual_seed(0)
    judge = Discriminator(width=4, classes=3)
    for _ in range(100):
        judge(torch.randn(2, 1, 28, 28), torch.tensor([0, 1]))
    judge.eval()
    for layer in (*judge.convolutions, judge.head, judge.projection):
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
        assert float(norm) == pytest.approx(1.0, abs=0.02)
    free = Discriminator(width=4, normalisation="none")
    assert max(float(c.weight.detach().flatten(1).norm()) for c in free.convolutions) < 0.9


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Generator(width=0), "width must be a whole number of at least 1, got 0"),
        (lambda: Generator(size=30), "cannot be halved"),
        (lambda: Generator(size=8), "larger than 8×8"),
        (lambda: Generator(4)(torch.randn(2, 5)), "takes codes of 4 numbers"),
        (lambda: Discriminator()(torch.zeros(1, 3, 28, 28)), r"\(1, 28, 28\), got \(3, 28, 28\)"),
        (lambda: GANConfig(r1=-1), "r1 must be a finite number of at least 0, got -1"),
        (lambda: GAN(GANConfig(classes=2)).generate(3, seeded()), "has 2 classes"),
        (lambda: ImageToImageConfig(content=0, adversarial=0), "both 0"),
    ],
)
def test_what_cannot_work_is_said(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_penalty_needs_a_critic_without_batch_normalisation():
    judge = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match="without batch normalisation"):
        AdversarialGame(nn.Linear(2, 2), judge, 2, gradient_penalty=10)
    AdversarialGame(nn.Linear(2, 2), judge, 2)


# --- The game with any networks --------------------------------------------------------------


def small_game(**options):
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1), nn.Flatten(0))
    return AdversarialGame(nn.Linear(3, 2), judge, 3, **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("options", [{}, {"gradient_penalty": 10}, {"r1": 1.0}])
def test_any_loss_goes_with_any_penalty(loss, options):
    game = small_game(loss=loss, **options)
    real = torch.randn(8, 2, generator=seeded())
    values = game.discriminator_loss(real, seeded(1))
    values["loss"].backward()
    assert all(p.grad is None for p in game.generator.parameters())
    assert all(p.grad is not None for p in game.discriminator.parameters())
    fake = game.sample(8, seeded(1))
    expected = LOSSES[loss].discriminator(game.discriminator(real), game.discriminator(fake))
    if "gradient_penalty" in options:
        expected = expected + 10 * values["penalty"]
    if "r1" in options:
        expected = expected + values["r1"]
    torch.testing.assert_close(values["loss"], expected)
    told = game.generator_loss(8, seeded(1))["loss"]
    torch.testing.assert_close(told, LOSSES[loss].generator(game.discriminator(fake)))


def test_each_phase_moves_its_own_network():
    game = small_game()
    phases = (
        Phase(
            "d",
            list(game.discriminator.parameters()),
            lambda b, s: game.discriminator_loss(b[0], s),
        ),
        Phase(
            "g",
            list(game.generator.parameters()),
            lambda b, s: game.generator_loss(len(b[0]), s),
            every=2,
        ),
    )
    data = torch.randn(64, 2, generator=seeded())
    trainer = Trainer(Objective(game, phases), (data,), TrainingSettings(steps=4, warmup=0.0))
    before = [game.generator.weight.detach().clone()]
    judged = [game.discriminator[0].weight.detach().clone()]
    for _ in trainer:
        before.append(game.generator.weight.detach().clone())
        judged.append(game.discriminator[0].weight.detach().clone())
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(before)]
    assert moved == [True, False, True, False]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(judged))


def test_it_learns_a_gaussian():
    """Mean and spread of the data, from noise, by R1 and the non-saturating loss."""
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 1), nn.Flatten(0))
    game = AdversarialGame(nn.Linear(1, 1), judge, 1, r1=0.3)
    data = 1 + 0.5 * torch.randn(2048, 1, generator=seeded())
    phases = (
        Phase("d", list(judge.parameters()), lambda b, s: game.discriminator_loss(b[0], s)),
        Phase(
            "g", list(game.generator.parameters()), lambda b, s: game.generator_loss(len(b[0]), s)
        ),
    )
    chosen = TrainingSettings(steps=700, batch_size=128, learning_rate=2e-2, beta1=0.0, ema=0.98)
    trainer = Trainer(Objective(game, phases), (data,), chosen)
    for _ in trainer:
        pass
    drawn = trainer.network.sample(20_000, seeded(3))
    assert float(drawn.mean()) == pytest.approx(1, abs=0.15)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.15)


def test_samples_follow_their_source():
    torch.manual_seed(0)
    model = GAN(GANConfig(generator_width=4, discriminator_width=4, classes=3)).eval()
    assert torch.equal(model.sample(3, seeded(1)), model.sample(3, seeded(1)))
    assert not torch.equal(model.sample(3, seeded(1)), model.sample(3, seeded(2)))
    labels = torch.tensor([0, 1, 2])
    z = model.sample(3, seeded(1), labels=labels)
    assert z.shape == (3, 1, 28, 28)


# --- From image to image --------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")[:64].floats()


def test_bold_strokes_contain_the_thin_ones(digits):
    bold = bolder(digits)
    assert (bold >= digits).all()
    assert bold.mean() > digits.mean() + 0.05
    one = -torch.ones(1, 1, 5, 5)
    one[0, 0, 2, 2] = 1
    assert int((bolder(one) == 1).sum()) == 9


def test_coarse_images_keep_the_mean_of_each_block(digits):
    coarse = coarser(digits)
    assert coarse.shape == digits.shape
    torch.testing.assert_close(F.avg_pool2d(coarse, 4), F.avg_pool2d(digits, 4))
    assert (coarse[..., ::4, ::4] == coarse[..., 3::4, 3::4]).all()


def test_a_hole_is_a_square_somewhere(digits):
    holed = with_a_hole(digits, seeded())
    gone = holed != digits
    assert ((holed == 0) | ~gone).all()
    filled = with_a_hole(torch.ones_like(digits), seeded()) == 0
    assert (filled.flatten(1).sum(dim=1) == 144).all()
    rows = filled.any(dim=3).float().argmax(dim=2).flatten()
    assert rows.min() == 0
    assert rows.max() == 16
    assert (filled.any(dim=3).sum(dim=2) == 12).all()


def test_noise_has_its_deviation(digits):
    assert float((noisier(digits, seeded()) - digits).std()) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("task", TASKS)
def test_tasks_give_pairs_of_one_shape(task, digits):
    given_, wanted = TASKS[task](digits, seeded())
    assert given_.shape == wanted.shape == digits.shape
    assert not torch.equal(given_, wanted)


def test_the_judge_sees_the_question_beside_the_answer(digits):
    torch.manual_seed(0)
    net = ImageToImage(ImageToImageConfig(generator_width=4, discriminator_width=4))
    seen = []
    net.discriminator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    given_, wanted = TASKS["denoising"](digits[:8], seeded())
    net.discriminator_loss(given_, wanted)
    assert torch.equal(seen[0], torch.cat([given_, wanted], dim=1))
    assert torch.equal(seen[1], torch.cat([given_, net(given_)], dim=1))


def test_without_the_judge_only_the_content_counts(digits):
    torch.manual_seed(0)
    config = ImageToImageConfig(
        generator_width=4, discriminator_width=4, content=2.0, adversarial=0
    )
    net = ImageToImage(config)
    given_, wanted = TASKS["denoising"](digits[:8], seeded())
    values = net.generator_loss(given_, wanted)
    torch.testing.assert_close(values["content"], F.mse_loss(net(given_), wanted))
    torch.testing.assert_close(values["loss"], 2 * values["content"])
