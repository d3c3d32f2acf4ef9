"""What all tests share."""

import matplotlib as mpl
import pytest
import torch

mpl.use("agg")


@pytest.fixture
def generator() -> torch.Generator:
    """A random stream of the test's own."""
    return torch.Generator().manual_seed(0)
