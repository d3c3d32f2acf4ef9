"""Attention against PyTorch's own layer, against the written-out formula, and against causality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.nn import (
    KeyValueCache,
    SelfAttention,
    attend,
    attention_weights,
    causal_mask,
    merge_heads,
    split_heads,
)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


sizes = st.integers(1, 5)


@settings(deadline=None, max_examples=25)
@given(b=sizes, h=sizes, t=sizes, extra=st.integers(0, 4), d=sizes, causal=st.booleans())
def test_attend_equals_the_written_out_average(b, h, t, extra, d, causal):
    q, k, v = (random(b, h, n, d, seed=i) for i, n in enumerate((t, t + extra, t + extra)))
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / d**0.5
    for i in range(t):
        for j in range(t + extra):
            if causal and j > i + extra:
                scores[:, :, i, j] = -torch.inf
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    torch.testing.assert_close(attention_weights(q, k, causal=causal), weights)
    torch.testing.assert_close(attend(q, k, v, causal=causal), weights @ v)


@settings(deadline=None, max_examples=25)
@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 20), t=st.integers(1, 6))
def test_the_output_is_a_weighted_mean_of_visible_values(shift, scale, t):
    q, k = random(2, 1, t, 4) * scale, random(2, 1, t, 4, seed=1)
    weights = attention_weights(q, k, causal=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, t, dtype=torch.float64))
    assert (weights >= 0).all()
    # A constant added to every key changes all scores of a query alike, so nothing changes.
    torch.testing.assert_close(attention_weights(q, k + shift, causal=True), weights)
    values = random(2, 1, t, 4, seed=2)
    out = attend(q, k, values, causal=True)
    assert (out <= values.cummax(2).values + 1e-9).all()
    assert (out >= values.cummin(2).values - 1e-9).all()


@settings(deadline=None, max_examples=15)
@given(heads=st.integers(1, 4), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_attention_without_a_mask_does_not_see_the_order_of_the_keys(heads, size, seed):
    q, k, v = (random(2, heads, 5, size, seed=seed + i) for i in range(3))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    shuffled = attend(q, k[:, :, order], v[:, :, order], causal=False)
    torch.testing.assert_close(shuffled, attend(q, k, v, causal=False))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_causal_self_attention_equals_torch(heads):
    ours = SelfAttention(16, heads, causal=True).double()
    theirs = torch.nn.MultiheadAttention(16, heads, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.project_in.weight,
            "in_proj_bias": ours.project_in.bias,
            "out_proj.weight": ours.project_out.weight,
            "out_proj.bias": ours.project_out.bias,
        }
    )
    x = random(3, 7, 16)
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected, weights = theirs(x, x, x, attn_mask=hidden, average_attn_weights=False)
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.weights(x), weights)


def test_the_jacobian_is_causal():
    layer = SelfAttention(8, 2, causal=True).double()
    x = random(1, 6, 8)
    jacobian = torch.autograd.functional.jacobian(layer, x)[0, :, :, 0]  # t c t' c'
    influence = jacobian.abs().amax(dim=(1, 3))
    assert (influence.triu(1) == 0).all()
    assert (influence.tril()[causal_mask(6, 6)] > 0).all()


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_cached_pieces_equal_the_full_pass(cuts):
    layer = SelfAttention(8, 2, causal=True).double()
    x = random(2, sum(cuts), 8)
    cache = KeyValueCache(sum(cuts))
    pieces = [layer(piece, cache) for piece in x.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x))
    assert cache.length == sum(cuts)


def test_heads_split_and_merge():
    x = random(2, 3, 12)
    split = split_heads(x, 4)
    assert split.shape == (2, 4, 3, 3)
    assert torch.equal(split[:, 1], x[:, :, 3:6])
    assert torch.equal(merge_heads(split), x)


def test_dropout_only_in_training():
    layer = SelfAttention(8, 2, dropout=0.5, causal=True).double()
    x = random(1, 5, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfAttention(10, 4), "width 10 cannot be cut into 4"),
        (lambda: SelfAttention(10, 0), "heads of at least 1"),
        (lambda: KeyValueCache(0), "capacity of at least 1 position, not 0"),
        (lambda: causal_mask(3, 2), "3 queries cannot be the last positions of 2 keys"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_full_cache_is_refused():
    cache = KeyValueCache(3)
    cache.append(random(1, 1, 2, 4), random(1, 1, 2, 4))
    with pytest.raises(ValueError, match="holds 2 of 3 positions and cannot take 2 more"):
        cache.append(random(1, 1, 2, 4), random(1, 1, 2, 4))
