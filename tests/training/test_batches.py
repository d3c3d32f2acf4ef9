"""The order of the data: permutations, each a function of seed and epoch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.training import BatchOrder

counts = st.integers(1, 60)


@given(count=counts, size=st.integers(1, 60), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_epoch_is_a_permutation(count, size, seed, epoch):
    size = min(size, count)
    order = BatchOrder(count, size, seed)
    per_epoch = count // size
    seen = torch.cat([order.indices(epoch * per_epoch + i) for i in range(per_epoch)])
    assert len(seen) == per_epoch * size
    assert len(set(seen.tolist())) == len(seen), "no sample twice in an epoch"
    assert set(seen.tolist()) <= set(range(count))


@given(count=counts, seed=st.integers(0, 2**31), steps=st.lists(st.integers(0, 200), min_size=1))
def test_a_batch_is_a_function_of_seed_and_step(count, seed, steps):
    """Whatever was asked before: so a run goes on anywhere."""
    used = BatchOrder(count, max(1, count // 3), seed)
    for step in steps:
        fresh = BatchOrder(count, max(1, count // 3), seed)
        assert torch.equal(used.indices(step), fresh.indices(step))


def test_epochs_and_seeds_differ():
    order = BatchOrder(50, 50, 0)
    first, second = order.indices(0), order.indices(1)
    assert not torch.equal(first, second)
    assert not torch.equal(first, BatchOrder(50, 50, 1).indices(0))


def test_an_incomplete_batch_sits_out():
    order = BatchOrder(10, 4, 0)
    assert order.per_epoch == 2
    assert [len(order.indices(step)) for step in range(5)] == [4] * 5


def test_every_sample_gets_its_turn_in_the_long_run():
    order = BatchOrder(10, 4, 0)
    counts = torch.zeros(10)
    for step in range(1000):
        counts[order.indices(step)] += 1
    # Each sits out an epoch with probability 1/5: 400 turns, and a standard deviation of √(500 · 0.2 · 0.8) ≈ 9.
    assert counts.sum() == 4000
    assert (counts - 400).abs().max() < 45


def test_more_than_there_is():
    with pytest.raises(
        ValueError, match=r"batch_size is 11, but there are only 10 samples; choose 10"
    ):
        BatchOrder(10, 11, 0)
