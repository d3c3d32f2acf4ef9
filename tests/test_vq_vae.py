"""The codebook against brute force and hand loops, and the VQ-VAE around it."""

import copy
import math
import multiprocessing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed
from torch.nn import functional as F

import companion.vq_vae as module
from companion.randomness import PerImage, Rows, derive, initialisation, integers
from companion.training import Trainer, TrainingSettings, single_objective
from companion.vq_vae import VQVAE, VectorQuantizer, VQVAEConfig, nearest, perplexity

TINY = {"width": 8, "codes": 12, "code_dim": 4, "blocks": 1}


def brute(z, e):
    return (z.double()[:, None] - e.double()).square().sum(2).argmin(1)


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=derive(seed))


# --- The lookup ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from([1e-4, 1.0, 300.0]),
    st.sampled_from([4, 400, 10**6]),
)
def test_the_nearest_code_is_that_of_brute_force(seed, m, k, d, offset, chunk):
    """Also far from the origin, where products in float32 have lost the differences, and in small chunks."""
    z = normal(m, d, seed=seed) + offset
    e = normal(k, d, seed=seed + 1) + offset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk)
        assert nearest(z, e).tolist() == brute(z, e).tolist()


def test_products_alone_would_miss_the_nearest():
    z, e = normal(500, 8) + 1000, normal(64, 8, seed=1) + 1000
    plain = (e.square().sum(1) / 2 - z @ e.T).argmin(1)
    assert (plain != brute(z, e)).any()
    assert nearest(z, e).equal(brute(z, e))


def test_of_equal_codes_it_is_the_first():
    e = normal(5, 3).repeat(3, 1)
    assert nearest(e, e).tolist() == [0, 1, 2, 3, 4] * 3


def test_memory_is_bounded(monkeypatch):
    largest = []
    real = torch.mm

    def spy(*args, **kwargs):
        largest.append(real(*args, **kwargs))
        return largest[-1]

    monkeypatch.setattr(torch, "mm", spy)
    nearest(normal(3000, 2), normal(8192, 2, seed=1))
    assert len(largest) > 1
    assert max(d.numel() * 4 for d in largest) <= module.CHUNK_BYTES


def test_bfloat16_does_not_change_the_lookup():
    z, e = normal(200, 8), normal(64, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest(z, e).equal(brute(z, e))


# --- Perplexity and losses ----------------------------------------------------------------------------------------


def test_perplexity():
    assert float(perplexity(torch.tensor([5, 5, 0, 5, 5]))) == pytest.approx(4)
    assert float(perplexity(torch.tensor([7, 0]))) == pytest.approx(1)
    # ½, ¼, ¼: 1.5 bits.
    assert float(perplexity(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(2**1.5)


def test_the_straight_through_gradient_is_the_decoders():
    net = VQVAE(VQVAEConfig(**TINY)).eval()
    z = net.encode(normal(2, 1, 28, 28).tanh()).detach().requires_grad_()
    out = net.quantise(z)
    assert out.z_q.equal(net.quantizer.codebook[out.indices])  # no rounding added
    (ours,) = torch.autograd.grad(net.decode(out.z_q).square().sum(), z)
    z_q = out.z_q.detach().requires_grad_()
    (theirs,) = torch.autograd.grad(net.decode(z_q).square().sum(), z_q)
    assert ours.equal(theirs)
    assert ours.abs().max() > 0


def test_without_straight_through_only_the_commitment_reaches_the_encoder():
    net = VQVAE(VQVAEConfig(**TINY, straight_through=False, commitment=0.0)).eval()
    x = normal(2, 1, 28, 28).tanh()
    net.loss(x)["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in net.encoder.parameters())
    assert any(p.grad.any() for p in net.decoder.parameters())


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_each_term_moves_only_its_own_side(kind):
    q = VectorQuantizer(6, 3, codebook=kind, start="uniform", restart=0)
    z = normal(4, 5, 3).requires_grad_()
    before = q.codebook.detach().clone()
    out = q(z)
    e = before[out.indices]
    square = ((z.detach() - e) ** 2).mean()
    torch.testing.assert_close(out.losses["commitment"].detach(), square)
    torch.testing.assert_close(
        out.losses["codebook"].detach(), square if kind == "gradient" else torch.zeros(())
    )
    (slope,) = torch.autograd.grad(out.losses["commitment"], z)
    torch.testing.assert_close(slope, 2 * (z.detach() - e) / z.numel())
    if kind == "gradient":
        (slope,) = torch.autograd.grad(out.losses["codebook"], q.codebook)
        wanted = torch.zeros(6, 3)
        for vector, index in zip(z.detach().view(-1, 3), out.indices.flatten(), strict=True):
            wanted[index] += 2 * (before[index] - vector) / z.numel()
        torch.testing.assert_close(slope, wanted)


# --- Running means, start and restart -----------------------------------------------------------------------------


def test_the_running_means_are_those_of_a_loop():
    q = VectorQuantizer(5, 2, start="uniform", restart=0, decay=0.9, epsilon=1e-2)
    e = q.codebook.double().clone()
    counts, sums = [1.0] * 5, [c.clone() for c in e]
    for step in range(6):
        z = normal(3, 4, 2, seed=step)
        q(z)
        index = brute(z.view(-1, 2), e)
        for k in range(5):
            mine = z.view(-1, 2)[index == k].double()
            counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
            sums[k] = 0.9 * sums[k] + 0.1 * mine.sum(0)
        total = sum(counts)
        for k in range(5):
            e[k] = sums[k] / ((counts[k] + 1e-2) / (total + 5e-2) * total)
        torch.testing.assert_close(q.codebook.double(), e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", ["k-means", "uniform"])
def test_counts_begin_consistent_with_the_codes(start):
    """A code's sum is its count times the code, so that unused codes stay in place."""
    q = VectorQuantizer(8, 3, start=start, restart=0)
    z = normal(10, 6, 3)
    if start == "k-means":
        q._start(z, derive(0))
    torch.testing.assert_close(q.sums, q.counts[:, None] * q.codebook)
    assert (q.counts >= 1).all()


def test_nothing_is_learned_in_evaluation():
    q = VectorQuantizer(8, 3).eval()
    before = copy.deepcopy(q.state_dict())
    q(normal(4, 6, 3))
    assert all(v.equal(before[k]) for k, v in q.state_dict().items())


def test_it_starts_from_the_clusters():
    """Four clusters far apart, four codes: each code is a cluster's mean."""
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    z = (centres[:, None] + normal(4, 30, 2, scale=0.1)).transpose(0, 1).contiguous()
    distortions = []
    for seed in range(5):
        q = VectorQuantizer(16, 2)
        out = q(z, derive(seed))
        distortions.append(float(out.losses["commitment"]))
        assert int(q.started) == 1
    # One code a cluster would leave σ² = 0.01; random codes in ±1/K leave about 50.
    assert max(distortions) < 0.01


def test_dead_codes_start_again_from_vectors_of_the_batch():
    q = VectorQuantizer(6, 2, start="uniform", restart=0.5, decay=0.5)
    with torch.no_grad():
        q.codebook.copy_(torch.tensor([[0.0, 0]] + [[1e3, 1e3]] * 5))
        q.sums.copy_(q.codebook)
    z = normal(4, 5, 2)
    q(z, derive(0))
    vectors = {tuple(v) for v in z.view(-1, 2).tolist()}
    again = [tuple(v) for v in q.codebook.tolist() if tuple(v) in vectors]
    assert len(again) == 5
    assert q.codebook.abs().max() < 10
    for seed in range(6):
        out = q(z, derive(seed))
    assert float(out.perplexity) > 3


def test_without_restart_dead_codes_stay_dead():
    q = VectorQuantizer(6, 2, start="uniform", restart=0, decay=0.5)
    with torch.no_grad():
        q.codebook.copy_(torch.tensor([[0.0, 0]] + [[1e3, 1e3]] * 5))
        q.sums.copy_(q.codebook)
    for _ in range(5):
        out = q(normal(4, 5, 2))
    assert float(out.perplexity) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_the_restart_is_a_function_of_the_source(kind):
    def after(seed):
        torch.manual_seed(3)
        q = VectorQuantizer(16, 2, codebook=kind, restart=0.9)
        for step in range(3):
            q(normal(3, 4, 2, seed=step), derive(seed, step))
        return q.codebook.detach()

    assert after(0).equal(after(0))
    assert not after(0).equal(after(1))


def test_parts_of_a_batch_update_as_the_whole():
    whole = VectorQuantizer(6, 2, start="uniform", restart=0)
    parts = copy.deepcopy(whole)
    for step in range(4):
        z = normal(8, 3, 2, seed=step)
        whole(z, Rows(derive(step), 0, 8, 8))
        for i in range(0, 8, 2):
            before = parts.codebook.clone()
            parts(z[i : i + 2], Rows(derive(step), i, i + 2, 8))
            assert (i == 6) != before.equal(parts.codebook)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


# --- The model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "size", "factor", "side"), [(1, 28, 4, 7), (3, 32, 4, 8), (2, 12, 2, 6)]
)
def test_tokens_and_back(channels, size, factor, side):
    net = VQVAE(VQVAEConfig(channels=channels, size=size, downsampling=factor, **TINY)).eval()
    x = normal(3, channels, size, size).tanh()
    tokens = net.tokenize(x)
    assert tokens.shape == (3, side, side)
    assert net.grid == (side, side)
    assert net.vocabulary == 12
    assert net.bits_per_image == pytest.approx(side * side * math.log2(12))
    out = net.quantise(net.encode(x))
    assert out.indices.equal(tokens)
    assert net(x).equal(net.detokenize(tokens))
    assert net(x).equal(net.decode(out.z_q).clamp(-1, 1))


def test_the_loss_is_equation_3():
    net = VQVAE(VQVAEConfig(**TINY, codebook="gradient", commitment=0.4)).eval()
    x = normal(3, 1, 28, 28).tanh()
    found = net.loss(x)
    z = net.encode(x)
    e = net.quantizer.codebook[net.tokenize(x)]
    reconstruction, square = F.mse_loss(net.decode(e), x), F.mse_loss(z, e)
    torch.testing.assert_close(found["loss"], reconstruction + 1.4 * square)
    assert float(found["perplexity"]) == pytest.approx(
        float(perplexity(torch.bincount(net.tokenize(x).flatten(), minlength=12)))
    )


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_it_learns_and_goes_on_exactly(kind, ema):
    """Smooth images; a run that is interrupted ends with the same weights, codes and average."""
    x = F.interpolate(normal(64, 1, 2, 2).tanh(), (8, 8), mode="bilinear", align_corners=True)

    def trainer():
        torch.manual_seed(0)
        net = VQVAE(VQVAEConfig(size=8, codebook=kind, **TINY))
        chosen = TrainingSettings(steps=60, batch_size=16, learning_rate=5e-3, ema=ema)
        return Trainer(single_objective(net, lambda b, s: net.loss(b[0], s)), (x,), chosen)

    first = trainer()
    for progress in first:
        if progress.step == 30:
            state = copy.deepcopy(first.state_dict())
    second = trainer()
    second.load_state_dict(state)
    for _ in second:
        pass
    assert all(
        v.equal(second.network.state_dict()[k]) for k, v in first.network.state_dict().items()
    )
    error = F.mse_loss(first.network.eval()(x), x).detach()
    assert float(error) < 0.35 * float(x.var())
    if ema:
        # Averaged weights with the codebook as it is: as good as the weights themselves.
        raw = F.mse_loss(first.objective.network(x), x).detach()
        assert float(error) < 1.3 * float(raw)


def test_samples_are_uniform_codes_of_each_image():
    net = VQVAE(VQVAEConfig(**TINY)).eval()
    drawn = net.sample(5, seed=3)
    codes = integers(12, (5, 7, 7), PerImage(3, 0, 5))
    assert drawn.equal(net.detokenize(codes))
    torch.testing.assert_close(net.sample(2, PerImage(3, 2, 4)), drawn[2:4])
    with pytest.raises(ValueError, match="either"):
        net.sample(2)


# --- Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 3, 28, 28), "1, 28, 28"), ((2, 1, 32, 32), "1, 28, 28")],
)
def test_other_images_are_refused(shape, message):
    net = VQVAE(VQVAEConfig(**TINY))
    for method in (net, net.tokenize, net.encode, net.loss):
        with pytest.raises(ValueError, match=message):
            method(torch.zeros(shape))


def test_bytes_are_refused():
    # The tests' own type checks refuse them first, in the words of the annotation.
    with pytest.raises(Exception, match=r"u8\[|uint8"):
        VQVAE(VQVAEConfig(**TINY)).tokenize(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


@pytest.mark.parametrize("token", [-1, 12])
def test_tokens_out_of_range_are_refused(token):
    tokens = torch.zeros(2, 7, 7, dtype=torch.int64)
    tokens[1, 3, 3] = token
    with pytest.raises(ValueError, match=rf"0…11, got .*{token}"):
        VQVAE(VQVAEConfig(**TINY)).detokenize(tokens)


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match="7×7"):
        VQVAE(VQVAEConfig(**TINY)).detokenize(torch.zeros(2, 8, 7, dtype=torch.int64))


def test_training_needs_a_source():
    with pytest.raises(ValueError, match="source"):
        VectorQuantizer(4, 2)(normal(3, 2))
    with pytest.raises(ValueError, match="2 numbers"):
        VectorQuantizer(4, 2)(normal(3, 5), derive(0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 30),
        ("codes", 1),
        ("downsampling", 0),
        ("commitment", -0.1),
        ("restart", 1.5),
        ("codebook", "none"),
        ("start", "zero"),
        ("codebook_decay", 1.5),
    ],
)
def test_settings_that_cannot_work(name, value):
    with pytest.raises(Exception, match=name):
        VQVAEConfig(**{name: value})


@pytest.mark.parametrize("start", ["k-means", "uniform"])
def test_a_missing_source_is_found_in_the_first_step(start):
    """Not when the first code dies, which may be hours later."""
    quantizer = VectorQuantizer(4, 2, start=start).train()
    with pytest.raises(ValueError, match="give forward a source"):
        quantizer(normal(8, 2))
    quantizer.eval()(normal(8, 2))
    VectorQuantizer(4, 2, start="uniform", restart=0).train()(normal(8, 2))


# --- Processes --------------------------------------------------------------------------------------------------------

STEPS, IMAGES = 3, 8
# With accumulated parts the start and the restart look at one part only, which is not what one process alone sees.
ALONE = {"start": "k-means", "restart": 0.9}
IN_PARTS = {"start": "uniform", "restart": 0.0}


def quantizer(kind, settings):
    with initialisation(0):
        return VectorQuantizer(6, 2, codebook=kind, decay=0.5, **settings).train()


def learn(network, rows, parts):
    """Some steps on the given rows of each batch, taken in so many parts; returns what was reported last."""
    for step in range(STEPS):
        z = normal(IMAGES, 5, 2, seed=step)
        for part in torch.arange(IMAGES)[rows].chunk(parts):
            source = Rows(derive(step), int(part[0]), int(part[-1]) + 1, IMAGES)
            found = network(z[part], source)
    return found.perplexity


def one_of_two(rank, path, kind, settings, parts):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2
    )
    network = quantizer(kind, settings)
    half = IMAGES // 2
    perplexity = learn(network, slice(rank * half, (rank + 1) * half), parts)
    torch.save((network.state_dict(), perplexity), f"{path}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["ema", "gradient"])
@pytest.mark.parametrize(("settings", "parts"), [(ALONE, 1), (IN_PARTS, 2)])
def test_two_processes_learn_the_codebook_of_one(kind, settings, parts, tmp_path):
    """Start, running means, usage and restarts: of the vectors of both, and the same in both."""
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=one_of_two, args=(rank, tmp_path, kind, settings, parts))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    one = quantizer(kind, settings)
    before = copy.deepcopy(one.state_dict())
    perplexity = learn(one, slice(0, IMAGES), parts)
    assert any(not torch.equal(value, before[key]) for key, value in one.state_dict().items())
    for rank in range(2):
        state, reported = torch.load(tmp_path / f"{rank}.pt")
        for key, value in one.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)
        if parts == 1:
            torch.testing.assert_close(reported, perplexity)
