"""Sums and rows over all processes that train together, with their gradients; with one process, nothing is sent.

PyTorch's own versions are either without a gradient or for one kind of device. These agree with what one process
computes on the whole batch, if every process holds the same number of samples.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed


def processes() -> int:
    """Returns the number of processes that train together."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def rank() -> int:
    """Returns the number of this process among them, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; the gradient of a sum is the sum of the gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient


def sum_over_processes(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Returns the sum of a tensor, of one shape in every process, over all of them."""
    return x if processes() == 1 else _Sum.apply(x)


def rows_of_processes(x: Float[Tensor, "n *shape"]) -> Float[Tensor, "m *shape"]:
    """Returns the rows of all processes, in the order of their ranks; each process must hold as many.

    Every process computes the same loss from them, so each row's gradient is the sum over the processes. A trainer
    averages gradients over the processes: a loss that is the mean over all rows comes out as in one process.
    """
    count = processes()
    if count == 1:
        return x
    # A sum, since it has its gradient already: every process puts its rows in their place and zeros elsewhere.
    places = x.new_zeros((count, *x.shape))
    mine = torch.zeros(count, *[1] * x.ndim, dtype=torch.bool, device=x.device)
    mine[rank()] = True
    return _Sum.apply(torch.where(mine, x[None], places)).flatten(0, 1)
