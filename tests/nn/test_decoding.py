"""Drawing by inversion against the distributions that it draws from."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.nn.decoding import choose, continue_sequence, draw, restrict


def logits(rows=5, tokens=11, seed=0, spread=2.0):
    return spread * torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed))


def levels(n):
    """Numbers spread evenly over [0, 1), so that frequencies are probabilities up to 1/n."""
    return (torch.arange(n) + 0.5) / n


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 99), tokens=st.integers(1, 30), spread=st.floats(0.0, 8.0))
def test_choose_gives_each_token_its_probability(seed, tokens, spread):
    row = logits(1, tokens, seed, spread)
    drawn = choose(row.expand(4000, -1), levels(4000))
    frequency = drawn.bincount(minlength=tokens) / 4000
    assert (frequency - row[0].softmax(0)).abs().max() <= 1.01 / 4000 + 1e-5


def test_a_token_without_mass_is_never_drawn():
    row = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    edges = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert choose(row.expand(3, -1), edges).tolist() == [1, 3, 3]
    # The sum of many equal shares is below 1 in float32; the largest u must not fall off its end.
    many = torch.zeros(1, 50_001).index_fill(1, torch.tensor([50_000]), -math.inf)
    assert int(choose(many, edges[-1:])) < 50_000


def nucleus(probabilities, top_p):
    """The fewest likeliest tokens with so much probability, by sorting and adding."""
    kept, mass = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda k: -probabilities[k]):
        if kept and mass >= top_p:
            break
        kept.add(token)
        mass += probabilities[token]
    return kept


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.2, 3.0),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_restrict_keeps_what_its_definition_keeps(seed, temperature, top_k, top_p):
    row = logits(1, seed=seed)
    probabilities = (row[0].double() / temperature).softmax(0)
    kept = set(probabilities.argsort(descending=True)[:top_k].tolist())
    given_one = torch.where(torch.tensor([k in kept for k in range(11)]), probabilities, 0.0)
    if top_p is not None and top_p < 1:
        shares = given_one / given_one.sum()
        # A sum that rounding may put on either side of the bound proves nothing.
        if (shares.sort(descending=True).values.cumsum(0) - top_p).abs().min() < 1e-5:
            return
        kept &= nucleus(shares.tolist(), top_p)
    found = restrict(row, temperature, top_k, top_p)[0].softmax(0).double()
    assert set(found.nonzero().flatten().tolist()) == kept
    expected = torch.where(torch.tensor([k in kept for k in range(11)]), probabilities, 0.0)
    torch.testing.assert_close(found, expected / expected.sum(), atol=1e-6, rtol=1e-5)


def test_temperature_zero_takes_the_likeliest_token():
    rows = logits()
    assert torch.equal(draw(rows, torch.full((5,), 0.99), 0), rows.argmax(1))
    assert torch.equal(choose(restrict(rows, 0), torch.full((5,), 0.99)), rows.argmax(1))


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_top_p_outside_its_range_is_named(top_p):
    with pytest.raises(ValueError, match="top_p must be"):
        restrict(logits(), top_p=top_p)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"temperature": -1.0}, "temperature must be a finite number of at least 0, got -1.0"),
        ({"temperature": math.inf}, "temperature must be a finite number"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
    ],
)
def test_other_choices_that_cannot_be_are_named(given_, message):
    with pytest.raises(ValueError, match=message):
        draw(logits(), torch.zeros(5), **given_)


def test_a_sequence_is_drawn_from_the_chain_of_its_conditionals():
    """A Markov chain of two tokens whose transitions are known."""
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    u = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    start = torch.tensor([0.5, 0.5]).log().expand(20_000, -1)
    drawn = continue_sequence(start, lambda token: transition[token].log(), u)
    counts = (drawn @ torch.tensor([4, 2, 1])).bincount(minlength=8) / 20_000
    for code in range(8):
        a, b, c = code >> 2, (code >> 1) & 1, code & 1
        expected = 0.5 * transition[a, b] * transition[b, c]
        assert counts[code] == pytest.approx(float(expected), abs=0.012)
