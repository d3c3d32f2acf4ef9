"""Ten thousand damaged files of feature statistics: each is found, and by the documented error alone."""

import runpy
from pathlib import Path

damage = runpy.run_path(str(Path(__file__).parents[1] / "metrics" / "damage.py"))


def test_10_000_damaged_files_are_found(tmp_path):
    survived = damage["damaged_statistics"](tmp_path / "reference.safetensors", range(10_000))
    assert survived == []
