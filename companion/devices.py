"""Where tensors live when the reader has not said so."""

import torch


def default_device() -> torch.device:
    """Returns the CUDA device if there is one, and the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_device(device: str | torch.device) -> torch.device:
    """Returns a device that is there.

    Raises:
        ValueError: if there is no such device, or torch was built without it.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"there is no device {device!r}: use 'cpu' or 'cuda'.") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ValueError(
                f"device {str(found)!r}: torch finds no CUDA device here. Use device='cpu', or install torch for CUDA."
            )
        if found.index is not None and found.index >= count:
            raise ValueError(
                f"device {str(found)!r}: torch finds {count} CUDA device(s), from 'cuda:0' on."
            )
    elif found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps': torch finds no Apple GPU here. Use device='cpu'.")
    return found
