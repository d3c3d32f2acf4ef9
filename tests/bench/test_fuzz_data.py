"""Ten thousand damaged files of each format of `companion.data`; the unit tests try five hundred."""

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "fuzz", Path(__file__).parents[1] / "data" / "fuzz.py"
)
fuzz = importlib.util.module_from_spec(_spec)
sys.modules["fuzz"] = fuzz  # dataclasses look there
_spec.loader.exec_module(fuzz)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_damaged_files(name, tmp_path, rounds):
    count = rounds(10_000)
    outcomes = fuzz.attack(fuzz.FORMATS[name], count, 1, tmp_path)
    print(f"{name}: {outcomes}")
    assert outcomes["refused"] >= count / 25
