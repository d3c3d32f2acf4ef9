"""What all tests share."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps a file's tests in one process, and those of training in the same one, which then needs one server."""
    for item in items:
        name = item.nodeid.partition("::")[0]
        if not name.startswith("tests/book/"):
            group = "training" if name.startswith("tests/training/") else name
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def afresh() -> Callable[[str], None]:
    """Runs a program where all that `companion` is built on is imported, but not `companion`, and nobody checks types.

    Forking takes milliseconds, where to start Python and to import all that takes ten seconds.
    """

    def run(program: str) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            os.close(reading)
            sys.stdout = sys.stderr = os.fdopen(writing, "w")
            try:
                import torch

                torch.set_num_threads(1)  # the threads of the parent are not here
                for name in list(sys.modules):
                    if name.partition(".")[0] in ("companion", "tests"):
                        del sys.modules[name]
                sys.meta_path[:] = [
                    finder
                    for finder in sys.meta_path
                    if not type(finder).__module__.startswith("jaxtyping")
                ]
                exec(compile(program, "<afresh>", "exec"), {"__name__": "__main__"})
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as file:
            said = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert (code, said) == (0, ""), said

    return run


@pytest.fixture
def generator() -> torch.Generator:
    """A random stream of the test's own."""
    import torch

    return torch.Generator().manual_seed(0)
