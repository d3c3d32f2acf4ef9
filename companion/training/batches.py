"""Which samples make up which batch: a function of the seed and the step, so that a run can go on anywhere."""

import torch
from jaxtyping import Int64
from torch import Tensor

from companion.randomness import derive


class BatchOrder:
    """A new random order every epoch; the few samples that do not fill a batch sit that epoch out.

    Args:
        count: number of samples.
        batch_size: samples a step.
        seed: of the orders.
        device: where the indices are wanted.

    Raises:
        ValueError: if there are fewer samples than a batch holds.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, device: str | torch.device = "cpu"
    ) -> None:
        if batch_size > count:
            raise ValueError(
                f"batch_size is {batch_size}, but there are only {count} samples; choose {count} or fewer."
            )
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.device = torch.device(device)
        self.per_epoch = count // batch_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Int64[Tensor, " batch"]:
        """Returns the samples of a step, which is counted from 0."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            # Drawn on the CPU whatever the device, so that the order is the same everywhere.
            order = torch.randperm(self.count, generator=derive(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.device)
        start = position * self.batch_size
        return self._order[start : start + self.batch_size]
