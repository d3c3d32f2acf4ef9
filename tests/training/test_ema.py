"""The average of the weights: known answers."""

import pytest
import torch
from torch import nn

from companion.training import EMA


class One(nn.Module):
    """One weight and one buffer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))


def set_to(network: One, value: float) -> None:
    with torch.no_grad():
        network.weight.fill_(value)


def share_left(decay: float, steps: int, warm: bool = True) -> float:
    """How much of the first weight, 1, is left once the weights have been 0 for some steps."""
    network = One(1.0)
    ema = EMA(network, decay)
    ema.update(network)
    set_to(network, 0.0)
    if not warm:
        ema.updates = 10**9  # long after the warm-up
    for _ in range(steps):
        ema.update(network)
    return float(ema.network.weight)


def test_the_first_update_copies():
    network = One(1.0)
    ema = EMA(network, 0.9999)
    set_to(network, 5.0)
    ema.update(network)
    assert float(ema.network.weight) == 5.0


def test_without_a_warm_up_the_beginning_stays_too_long():
    """At 0.9999, 0.9999^10000 = 36.8 % of the first weights remain after 10,000 steps; with it hardly any."""
    without, warm = (share_left(0.9999, 10_000, warm) for warm in (False, True))
    assert without == pytest.approx(0.9999**10_000, rel=1e-9)
    assert without == pytest.approx(0.368, abs=1e-3)
    # d_t = (1 + t)/(10 + t) multiplies to about 9!·…/t⁹, so nothing is left after a few dozen steps.
    assert warm < 1e-20


def test_the_warm_up_is_that_of_the_formula():
    expected = 1.0
    for t in range(1, 21):
        expected *= min(0.9, (1 + t) / (10 + t))
    assert share_left(0.9, 20) == pytest.approx(expected, rel=1e-12)


def test_the_largest_decay_holds_in_the_end():
    network = One(0.0)
    ema = EMA(network, 0.5)
    ema.updates = 1000
    set_to(network, 1.0)
    for left in (0.5, 0.25, 0.125):
        ema.update(network)
        assert float(ema.network.weight) == pytest.approx(1 - left)


def test_buffers_are_copied():
    network = One(1.0)
    ema = EMA(network, 0.9)
    for count in (3, 7):
        network.count.fill_(count)
        ema.update(network)
        assert ema.network.count == count
    network.count.fill_(9)
    assert ema.network.count == 7, "copied, not shared"


def test_the_average_is_a_network_of_its_own():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    ema = EMA(network, 0.9)
    assert not ema.network.training
    assert network.training
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_an_impossible_decay(decay):
    with pytest.raises(ValueError, match="decay must lie between 0 and 1"):
        EMA(One(0.0), decay)
