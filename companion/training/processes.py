"""What the processes that train together tell one another; with one process, nothing is sent."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

T = TypeVar("T")


def rank_zero_does(fabric: Fabric, action: Callable[[], T]) -> T:
    """Lets rank zero act, and gives all processes what it returned, or raises in all what it raised."""
    if fabric.world_size == 1:
        return action()
    result: Any = None
    if fabric.is_global_zero:
        try:
            result = action()
        except Exception as error:
            result = error
    result = fabric.broadcast(result, src=0)
    if isinstance(result, Exception):
        raise result
    return result


def gather(fabric: Fabric, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "processes *shape"]:
    """Returns the tensors of all processes, which must have one shape and type, in the order of their ranks."""
    if fabric.world_size == 1:
        return tensor[None]
    # PyTorch 2.13 has this name for it, and warns of the one before.
    send = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    everything = tensor.new_empty((fabric.world_size * tensor.numel(),))
    send(everything, tensor.contiguous().flatten())
    return everything.view(fabric.world_size, *tensor.shape)


def average_gradients(fabric: Fabric, parameters: Sequence[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes, in one message for each data type.

    A loss need not reach every parameter in every process: where one has no gradient it counts as zero, so that the
    messages are equally long everywhere. A parameter without a gradient in any process stays without, as it would in
    one process alone.
    """
    by_type: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_type.setdefault(parameter.dtype, []).append(parameter)
    for same in by_type.values():
        here = [parameter.grad is not None for parameter in same]
        parts = [
            p.detach().new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in same
        ]
        together = torch.cat([*parts, same[0].detach().new_tensor(here)])
        # Not fabric.all_reduce, which waits for all processes once more before it sends anything.
        distributed.all_reduce(together)
        together /= fabric.world_size
        *means, senders = together.split([*(p.numel() for p in same), len(same)])
        # Read only where it matters, since a GPU has to be waited for.
        anywhere = here if all(here) else (senders > 0).tolist()
        for parameter, mean, some in zip(same, means, anywhere, strict=True):
            if some:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(mean.view(parameter.shape))


def from_rank_zero(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors by those of rank zero, in one message for each data type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor.detach())
    for same in by_type.values():
        together = torch.cat([t.flatten() for t in same])
        distributed.broadcast(together, src=0)
        for tensor, part in zip(same, together.split([t.numel() for t in same]), strict=True):
            tensor.copy_(part.view(tensor.shape))
