"""Ten thousand damaged states and ten thousand damaged logs, as the tests' five hundred."""

import importlib.util
from pathlib import Path

import pytest


def _load(name: str):
    path = Path(__file__).parents[1] / "training" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(900)
def test_ten_thousand_damaged_states(tmp_path, capsys, rounds):
    count = rounds(10_000)
    ends = _load("test_fuzz").fuzz_states(_load("worker"), tmp_path / "run", count, seed=1)
    with capsys.disabled():
        print(f"\n{count:,} damaged states: {ends}")
    assert ends["refused"] > 0.4 * count


@pytest.mark.timeout(900)
def test_ten_thousand_damaged_logs(tmp_path, capsys, rounds):
    count = rounds(10_000)
    ends = _load("test_fuzz").fuzz_logs(tmp_path, count, seed=1)
    with capsys.disabled():
        print(f"\n{count:,} damaged logs: {ends}")
    assert ends["refused"] > 0.4 * count
