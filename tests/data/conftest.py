"""What the tests of data share."""

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "misbehaving_server", Path(__file__).with_name("server.py")
)
_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_server)


@pytest.fixture
def site():
    """A local HTTP server that misbehaves on demand."""
    with _server.serving() as site:
        yield site
