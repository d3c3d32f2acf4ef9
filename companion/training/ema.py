"""The exponential moving average of a network's weights, which samples better than the weights themselves."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Keeps a second network whose weights follow the first's: w̄ ← d·w̄ + (1 − d)·w.

    The decay is warmed up, d_t = min(decay, (1 + t) / (10 + t)) after t updates (as in TensorFlow's
    ExponentialMovingAverage), because at 0.9999 without it 36.8 % of the random initial weights would still be
    there after 10,000 steps. The first update copies the weights. Buffers, such as the running statistics of
    batch normalisation, are copied.

    Args:
        network: the network to follow; it is copied.
        decay: the largest decay, between 0 and 1.

    Raises:
        ValueError: if the decay is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay must lie between 0 and 1, got {decay}.")
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0
        self._parameters: list[Tensor] = list(self.network.parameters())
        self._buffers = list(self.network.buffers())

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the network's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        torch._foreach_lerp_(self._parameters, list(network.parameters()), 1 - decay)
        for average, buffer in zip(self._buffers, network.buffers(), strict=True):
            average.copy_(buffer)
        self.updates += 1
