"""Where tensors live when the reader has not said so."""

import torch


def default_device() -> torch.device:
    """Returns the CUDA device if there is one, and the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
