"""Batch normalisation whose statistics are those of the whole batch, over however many processes it is spread.

After Ioffe and Szegedy, Batch Normalization, 2015. `torch.nn.BatchNorm2d` normalises over the samples of its own
process, so that two processes with 32 images do something else than one with 64; `torch.nn.SyncBatchNorm` runs on
GPUs only. This one agrees with `torch.nn.BatchNorm2d` in one process, and its result does not depend on their number.
"""

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn


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


def processes() -> int:
    """Returns the number of processes that train together."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the batch of all processes, each of which holds the same number of samples."""

    # It keeps running statistics, by a fixed momentum: what torch's class leaves open.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalises each channel; in evaluation mode by the running statistics."""
        if not self.training or processes() == 1:
            return super().forward(x)
        wide = x.float()
        count = wide.numel() // wide.shape[1] * processes()
        mean = _Sum.apply(wide.sum(dim=(0, 2, 3))) / count
        off = wide - mean[:, None, None]
        variance = _Sum.apply(off.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (off * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
