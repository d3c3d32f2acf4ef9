"""Two-way attention against PyTorch's layer, and its symmetry in the tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.nn import Block, KeyValueCache, SelfAttention


def test_self_attention_equals_pytorchs_layer():
    torch.manual_seed(0)
    ours = SelfAttention(12, 3).double()
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.project_in.weight)
        theirs.in_proj_bias.copy_(ours.project_in.bias)
        theirs.out_proj.weight.copy_(ours.project_out.weight)
        theirs.out_proj.bias.copy_(ours.project_out.bias)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.weights(x), weights)


@settings(deadline=None, max_examples=20)
@given(tokens=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_block_commutes_with_every_order_of_the_tokens(tokens, seed):
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    block = Block(8, 2).double()
    x = torch.randn(3, tokens, 8, generator=g, dtype=torch.float64)
    order = torch.randperm(tokens, generator=g)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_a_token_sees_later_ones():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(Block(8, 2)(x)[0, 0].sum(), x)
    assert (gradient[0].abs().sum(dim=1) > 0).all()


def test_a_causal_block_sees_no_later_token_and_goes_on_from_a_cache():
    torch.manual_seed(0)
    block = Block(8, 2, causal=True).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    whole, cache = block(x), KeyValueCache(5)
    changed = x.clone()
    changed[:, 3:] += 1
    torch.testing.assert_close(block(changed)[:, :3], whole[:, :3])
    parts = [block(x[:, i : i + 1], cache) for i in range(5)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_dropout_drops_in_training_only():
    torch.manual_seed(0)
    block, x = Block(8, 2, dropout=0.5), torch.randn(2, 5, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_two_way_attention_takes_no_cache():
    with pytest.raises(ValueError, match="cannot go on from a cache"):
        Block(8, 2)(torch.zeros(1, 2, 8), KeyValueCache(4))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 10 cannot be cut into 4"):
        SelfAttention(10, 4)
