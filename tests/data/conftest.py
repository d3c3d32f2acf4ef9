"""What the tests of data share."""

import importlib.util
import sys
from pathlib import Path

import pytest


def _beside(name):
    """Loads a module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


_server = _beside("server")


@pytest.fixture
def site():
    """A local HTTP server that misbehaves on demand."""
    with _server.serving() as site:
        yield site


@pytest.fixture(scope="session")
def fuzz():
    """The mutator and the formats."""
    return _beside("fuzz")
