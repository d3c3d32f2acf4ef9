"""What all tests share."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

BENEATH = (
    "beartype",
    "einops",
    "lightning_fabric",
    "matplotlib.pyplot",
    "msgspec",
    "scipy.stats",
    "sklearn.linear_model",
    "torchmetrics",
)


def pytest_collection(session: pytest.Session) -> None:
    """Imports what `companion` is built on before any test imports `companion`.

    Within the hook that adds the type checks, Python looks for compiled modules under names of its own, and so would
    compile two thousand modules of other packages again in every process. The process that only hands the tests out
    imports nothing: its workers wait for it.
    """
    if not session.config.getoption("numprocesses", None):
        for name in BENEATH:
            importlib.import_module(name)
        import matplotlib as mpl

        mpl.use("agg")


@pytest.fixture
def generator() -> torch.Generator:
    """A random stream of the test's own."""
    import torch

    return torch.Generator().manual_seed(0)
