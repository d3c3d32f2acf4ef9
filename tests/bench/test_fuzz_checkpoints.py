"""Ten thousand damaged cards and as many damaged weights; a few minutes."""

import importlib.util
from pathlib import Path

import pytest

from companion.checkpoints import Card, save_checkpoint
from companion.metrics.digit_cnn import DigitCNN, DigitCNNConfig

_file = Path(__file__).parents[1] / "checkpoints" / "mutations.py"
_spec = importlib.util.spec_from_file_location("mutations", _file)
mutations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutations)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fuzz", ["fuzz_cards", "fuzz_weights"])
def test_ten_thousand_damaged_files(tmp_path, fuzz, rounds):
    save_checkpoint(DigitCNN(DigitCNNConfig(width=1)), Card(name="small"), tmp_path)
    count = rounds(10_000)
    loaded = getattr(mutations, fuzz)(tmp_path / "small.safetensors", count, seed=2)
    assert 0 < loaded < count / 2
