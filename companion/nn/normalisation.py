"""Batch normalisation whose statistics are those of the whole batch, over however many processes it is spread.

After Ioffe and Szegedy, Batch Normalization, 2015. `torch.nn.BatchNorm2d` normalises over the samples of its own
process, so that two processes with 32 images do something else than one with 64; `torch.nn.SyncBatchNorm` runs on
GPUs only. This one agrees with `torch.nn.BatchNorm2d` in one process, and its result does not depend on their number.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.nn.collective import processes, sum_over_processes


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
        mean = sum_over_processes(wide.sum(dim=(0, 2, 3))) / count
        off = wide - mean[:, None, None]
        variance = sum_over_processes(off.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (off * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
