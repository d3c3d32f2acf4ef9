"""Damaged cards and weights end in a `CheckpointError` or a network, never in another exception."""

import importlib.util
from pathlib import Path

import pytest

from companion.checkpoints import Card, save_checkpoint
from companion.metrics.digit_cnn import DigitCNN, DigitCNNConfig

_spec = importlib.util.spec_from_file_location("mutations", Path(__file__).parent / "mutations.py")
mutations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutations)


@pytest.fixture
def weights(tmp_path):
    save_checkpoint(DigitCNN(DigitCNNConfig(width=1)), Card(name="small"), tmp_path)
    return tmp_path / "small.safetensors"


def test_damaged_cards(weights):
    loaded = mutations.fuzz_cards(weights, 500, seed=0)
    # Some damage concerns neither network nor hash; most is noticed.
    assert 0 < loaded < 250


def test_damaged_weights_that_their_card_vouches_for(weights):
    loaded = mutations.fuzz_weights(weights, 500, seed=1)
    assert 0 < loaded < 250
