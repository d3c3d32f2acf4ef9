"""The transformer as a probability model: causal, normalised, sampled as it says, able to learn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from companion.nn import CausalTransformer, TransformerConfig

SMALL = TransformerConfig(vocabulary=11, context=8, width=16, layers=2, heads=2)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


def rng(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def model(config=SMALL, seed=0, spread=1.0):
    """An untrained model; `spread` > 1 makes its distributions far from uniform."""
    net = CausalTransformer(config, rng(seed)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
    return net


def tokens(b=3, t=8, config=SMALL, seed=1):
    return torch.randint(config.vocabulary, (b, t), generator=rng(seed))


@settings(deadline=None, max_examples=15)
@given(
    vocabulary=st.integers(2, 200),
    heads=st.integers(1, 3),
    layers=st.integers(1, 3),
    tie=st.booleans(),
)
def test_an_untrained_model_is_nearly_uniform(vocabulary, heads, layers, tie):
    config = TransformerConfig(
        vocabulary, context=16, width=12 * heads, layers=layers, heads=heads, tie_weights=tie
    )
    net = model(config)
    batch = tokens(8, 16, config)
    assert net.loss(batch).item() == pytest.approx(math.log(vocabulary), abs=0.1)
    total = net(batch).softmax(-1).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_the_jacobian_is_causal():
    net = model(spread=10).double()
    embedded = net.token_embedding(tokens(1)).detach()
    net.token_embedding.forward = lambda _: inputs
    inputs = embedded

    def logits(x):
        nonlocal inputs
        inputs = x
        return net(tokens(1))

    jacobian = torch.autograd.functional.jacobian(logits, embedded)[0, :, :, 0]
    influence = jacobian.abs().amax(dim=(1, 3))
    assert (influence.triu(1) == 0).all()
    assert (influence[torch.ones(8, 8).tril().bool()] > 0).all()


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(1, 7), seed=st.integers(0, 99))
def test_later_tokens_change_no_earlier_logit(cut, seed):
    net = model(spread=10)
    one, other = tokens(seed=seed), tokens(seed=seed)
    other[:, cut:] = tokens(seed=seed + 100)[:, cut:]
    torch.testing.assert_close(net(one)[:, :cut], net(other)[:, :cut])


def test_the_loss_is_the_product_rule():
    net = model(spread=10).double()
    batch = tokens()
    by_hand = torch.zeros(3, 7, dtype=torch.float64)
    for row in range(3):
        for t in range(1, 8):
            probs = net(batch[row : row + 1, :t])[0, -1].softmax(-1)
            by_hand[row, t - 1] = probs[batch[row, t]].log()
    torch.testing.assert_close(net.log_probs(batch).double(), by_hand, atol=1e-5, rtol=1e-5)
    assert net.loss(batch).item() == pytest.approx(-by_hand.mean().item(), abs=1e-5)


def test_sequence_probabilities_sum_to_one():
    config = TransformerConfig(vocabulary=3, context=5, width=8, heads=2)
    net = model(config, spread=10)
    grid = torch.cartesian_prod(*[torch.arange(3)] * 4)
    sequences = torch.cat([torch.zeros(81, 1, dtype=torch.int64), grid], dim=1)
    assert net.log_probs(sequences).sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(1, 3), min_size=1, max_size=4).filter(lambda c: sum(c) <= 8))
def test_cached_logits_equal_the_full_pass(cuts):
    net = model(spread=10)
    batch = tokens(t=sum(cuts))
    caches = net.new_caches()
    pieces = [net(piece, caches) for piece in batch.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), net(batch), atol=1e-5, rtol=1e-5)


def test_cached_sampling_draws_the_same_tokens_even_past_the_context():
    net = model(spread=10)
    cached = net.generate(tokens(t=2), 12, rng())
    naive = net.generate(tokens(t=2), 12, rng(), use_cache=False)
    assert cached.shape == (3, 14)
    assert torch.equal(cached, naive)
    assert torch.equal(cached[:, :2], tokens(t=2))


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.7, None), (2.0, 4)])
def test_generate_draws_from_the_softmax(temperature, top_k):
    net = model(spread=10)
    prompt = tokens(1, 3)
    logits = net(prompt)[0, -1].double() / temperature
    if top_k:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    expected = logits.softmax(-1)
    draws = net.generate(prompt.repeat(20_000, 1), 1, rng(5), temperature, top_k)[:, -1]
    counts = draws.bincount(minlength=11).double()
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    assert expected.max() / expected[possible].min() > 1.5, "too uniform to test anything"
    result = chisquare(counts[possible].numpy(), 20_000 * expected[possible].detach().numpy())
    assert result.pvalue > 1e-3


def test_temperature_zero_and_top_one_take_the_likeliest_token():
    net = model(spread=10)
    greedy = net.generate(tokens(t=2), 4, rng(), temperature=0)
    assert torch.equal(greedy[:, 2], net(tokens(t=2))[:, -1].argmax(-1))
    assert torch.equal(greedy, net.generate(tokens(t=2), 4, rng(7), top_k=1))


def test_generate_leaves_the_mode_as_it_was_and_switches_dropout_off():
    config = TransformerConfig(11, 8, width=16, heads=2, dropout=0.5)
    net = model(config, spread=10).train()
    first, second = (net.generate(tokens(t=2), 6, rng(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert net.training


@pytest.mark.parametrize("scale", [1, 5])
def test_initial_scales_are_those_of_gpt2(scale):
    config = TransformerConfig(
        500, 100, width=64, layers=8, heads=4, tie_weights=False, init_std=0.02 * scale
    )
    net = CausalTransformer(config, rng())
    assert net.token_embedding.weight.std().item() == pytest.approx(0.02 * scale, rel=0.05)
    assert net.position_embedding.weight.std().item() == pytest.approx(0.01 * scale, rel=0.05)
    for block in net.blocks:
        assert block.expand.weight.std().item() == pytest.approx(0.02 * scale, rel=0.05)
        for joining in (block.attention.project_out, block.contract):
            assert joining.weight.std().item() == pytest.approx(0.005 * scale, rel=0.05)
        assert (block.contract.bias == 0).all()
        assert (block.norm_1.weight == 1).all()


def test_tied_weights_are_one_tensor_and_the_generator_fixes_them_all():
    net, again, other = (CausalTransformer(SMALL, rng(s)) for s in (0, 0, 1))
    assert net.head.weight is net.token_embedding.weight
    pairs = zip(net.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(net.head.weight, other.head.weight)
    free = CausalTransformer(TransformerConfig(11, 8, width=16, heads=2, tie_weights=False))
    count = [sum(p.numel() for p in m.parameters()) for m in (free, net)]
    assert count[0] - count[1] == 11 * 16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_learns_a_short_sequence_by_heart(device, dtype):
    net = CausalTransformer(SMALL, rng()).to(device)
    batch = torch.tensor([[1, 2, 3, 1, 2, 4, 1, 5]], device=device)  # "1 2" needs the context
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(80):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = net.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.dtype == torch.float32
    assert loss.item() < 0.05
    drawn = net.generate(batch[:, :1], 7, rng(), temperature=0)
    assert torch.equal(drawn, batch)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_weights_agree_with_float32(device):
    net = model(spread=3).to(device)
    batch = tokens().to(device)
    exact = net.loss(batch).item()
    half = net.bfloat16()
    assert half.loss(batch).item() == pytest.approx(exact, abs=0.05)
    assert half.generate(batch[:, :2], 4, rng()).shape == (3, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 0}, "vocabulary must be a whole number of at least 1, got 0"),
        ({"layers": -1}, "layers must be a whole number from 1 to 1,000, got -1"),
        ({"width": 10, "heads": 4}, "width 10 is not a multiple of heads 4: choose width 12"),
        ({"dropout": 1.0}, "dropout must be a finite number of at least 0 and below 1, got 1.0"),
        ({"dropout": math.nan}, "dropout must be a finite number .* got nan"),
        ({"init_std": 0.0}, "init_std must be a finite number above 0, got 0.0"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"vocabulary": 11, "context": 8, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(tokens(t=9)), "sequence of 9 tokens is longer than the context 8"),
        (lambda m: m(tokens() + 5), r"tokens lie in \[5, 15\], outside \[0, 10\]"),
        (lambda m: m(tokens() - 1), r"tokens lie in \[-1, "),
        (lambda m: m(tokens(t=0)), "at least one sequence of one token"),
        (lambda m: m.loss(tokens(t=1)), r"1 token\(s\) have nothing to predict"),
        (lambda m: m.generate(tokens(), -1, rng()), "n is -1"),
        (
            lambda m: m.generate(tokens(), 1, rng(), temperature=-1.0),
            "temperature must .* got -1.0",
        ),
        (lambda m: m.generate(tokens(), 1, rng(), temperature=math.nan), "temperature .* got nan"),
        (lambda m: m.generate(tokens(), 1, rng(), top_k=0), "top_k must .* got 0"),
        (lambda m: m.generate(tokens(), 1, rng(), top_p=0.0), "top_p must .* above 0, got 0.0"),
        (lambda m: m.generate(tokens(), 1, rng(), top_p=1.5), "top_p must .* at most 1 .* got 1.5"),
        (lambda m: m.generate(tokens(), 1), "give either seed=…"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(model())


@pytest.mark.parametrize(("held", "given_"), [(3, 1), (1, 3), (2, 3)])
def test_a_cache_of_another_batch_is_refused(held, given_):
    net = model()
    caches = net.new_caches()
    net(tokens(held, 4), caches)
    with pytest.raises(ValueError, match=rf"holds {held} sequence\(s\) .* got {given_} in"):
        net(tokens(given_, 1), caches)


def test_a_full_cache_is_refused_by_the_context():
    net = model()
    caches = net.new_caches()
    net(tokens(), caches)
    with pytest.raises(ValueError, match="9 tokens is longer than the context 8"):
        net(tokens(t=1), caches)
