"""Checkpoints: what ships, saving and loading, and files that are not what they claim to be."""

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import companion
from companion import checkpoints
from companion.checkpoints import (
    Card,
    CheckpointError,
    checkpoint_names,
    load_card,
    load_checkpoint,
    save_checkpoint,
)
from companion.data import load
from companion.metrics.digit_cnn import DigitCNN
from companion.training import accuracy

CLASS = "companion.metrics.digit_cnn.DigitCNN"


def card(**changes) -> Card:
    settings = {
        "name": "small",
        "model": CLASS,
        "config": {"width": 4},
        "recipe": {"name": "none"},
        "data": {"name": "none"},
        "steps": 0,
        "seed": 0,
        "seconds": 0.0,
        "device": "cpu",
        "metrics": {},
    }
    return Card(**(settings | changes))


@pytest.fixture
def small(tmp_path) -> Path:
    """A checkpoint of a small, untrained network; returns the path of its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(DigitCNN(width=4), card(), tmp_path)
    return tmp_path / "small.safetensors"


def change_card(path: Path, **changes) -> None:
    path = path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize("name", checkpoint_names())
class TestShipped:
    def test_size_and_precision(self, name):
        path = checkpoints.SHIPPED / f"{name}.safetensors"
        assert path.stat().st_size <= 6_000_000
        floats = [t.dtype for t in load_file(path).values() if t.is_floating_point()]
        assert set(floats) == {torch.float16}

    def test_card_is_complete(self, name):
        shipped = load_card(name)
        assert shipped.name == name
        assert shipped.steps > 0
        assert shipped.seconds > 0
        assert len(shipped.sha256) == 64
        assert len(shipped.data["sha256"]) == 64
        assert {"python", "torch", "companion"} <= set(shipped.packages)
        assert shipped.metrics

    def test_loads_ready_to_use(self, name):
        model = companion.load_checkpoint(name)
        assert not any(module.training for module in model.modules())
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
        assert sum(p.numel() for p in model.parameters()) == load_card(name).parameters


def test_all_checkpoints_together():
    total = sum(path.stat().st_size for path in checkpoints.SHIPPED.glob("*.safetensors"))
    assert total <= 40_000_000


def test_the_digit_classifier_is_as_accurate_as_its_card_says():
    held_out = load("digits", "test")
    found = accuracy(load_checkpoint("digit-cnn"), held_out.images, held_out.labels)
    stated = load_card("digit-cnn").metrics["digits/test accuracy"]
    assert found == pytest.approx(stated, abs=0.002)
    assert found >= 0.988


# ---------------------------------------------------------------- saving and loading


def test_round_trip_is_half_precision(small):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = DigitCNN(width=4)
    loaded = load_checkpoint(small)
    assert isinstance(loaded, DigitCNN)
    for key, value in original.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[key], expected), key


def test_a_path_may_be_text_or_name_the_card(small):
    assert isinstance(load_checkpoint(str(small)), DigitCNN)
    assert isinstance(load_checkpoint(small.with_suffix(".json")), DigitCNN)


def test_the_same_weights_give_the_same_file(small, tmp_path):
    again = save_checkpoint(load_checkpoint(small), card(), tmp_path / "again")
    assert again.sha256 == load_card(small).sha256
    assert hashlib.sha256(small.read_bytes()).hexdigest() == again.sha256


def test_a_save_that_is_interrupted_leaves_the_old_file(small, monkeypatch):
    before = small.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(DigitCNN(width=4), card(), small.parent)
    monkeypatch.undo()
    assert small.read_bytes() == before
    assert sorted(p.name for p in small.parent.iterdir()) == ["small.json", "small.safetensors"]
    load_checkpoint(small)


def test_weights_beyond_half_precision_are_not_saved(tmp_path):
    model = DigitCNN(width=4)
    with torch.no_grad():
        model.head.bias[0] = 70_000
    with pytest.raises(CheckpointError, match=r"'head.bias' has values that float16 cannot hold"):
        save_checkpoint(model, card(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_card_of_another_class_is_not_saved(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"the network is a 'companion\.metrics\.digit_cnn\.DigitCNN'"
    ):
        save_checkpoint(DigitCNN(width=4), card(model="companion.vae.VAE"), tmp_path)


# ---------------------------------------------------------------- names and paths


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown checkpoint 'digit_cnn'\. Did you mean 'digit-cnn'\?"
    ):
        load_checkpoint("digit_cnn")


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        load_card("../none")


# ---------------------------------------------------------------- foreign and damaged files


class Bomb:
    """Unpickling this creates a file, which stands for any code at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("style", ["pickle", "torch", "old torch"])
def test_a_pickle_is_refused_and_never_run(small, tmp_path, style):
    trace = tmp_path / "it-ran"
    if style == "pickle":
        small.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save(Bomb(trace), small, _use_new_zipfile_serialization=style == "torch")
    # Even a card that vouches for the file changes nothing.
    change_card(small, sha256=hashlib.sha256(small.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="holds a pickle"):
        load_checkpoint(small)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"weights",
        b"GIF89a" + bytes(100),
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 20) + b"{not json at all....",
        struct.pack("<Q", 9) + b'{"a": []}',
        struct.pack("<Q", 22) + b'{"a":{"data_offsets":[',
    ],
)
def test_a_foreign_file_is_refused(small, content):
    small.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'small.safetensors' is not a safetensors file"):
        load_checkpoint(small)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(small, share):
    content = small.read_bytes()
    small.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"truncated|cut within its header"):
        load_checkpoint(small)


def test_a_file_with_a_tail_is_refused(small):
    small.write_bytes(small.read_bytes() + b"tail")
    with pytest.raises(CheckpointError, match="too long"):
        load_checkpoint(small)


def test_one_altered_bit_is_noticed(small):
    content = bytearray(small.read_bytes())
    content[-1] ^= 1
    small.write_bytes(content)
    stated, found = load_card(small).sha256, hashlib.sha256(content).hexdigest()
    with pytest.raises(
        CheckpointError, match=f"was altered: its SHA-256 is {found}, its card says {stated}"
    ):
        load_checkpoint(small)


def test_weights_of_another_network_are_refused(small):
    save_file({"weight": torch.zeros(3)}, small)
    change_card(small, sha256=hashlib.sha256(small.read_bytes()).hexdigest())
    with pytest.raises(
        CheckpointError, match=r"do not fit companion\.metrics\.digit_cnn\.DigitCNN"
    ):
        load_checkpoint(small)


def test_overlapping_tensors_are_refused(small):
    """A header that passes our own checks and that safetensors itself rejects."""
    table = {key: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for key in "ab"}
    header = json.dumps(table).encode()
    small.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    change_card(small, sha256=hashlib.sha256(small.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        load_checkpoint(small)


# ---------------------------------------------------------------- cards


def test_a_missing_card(small):
    small.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=r"card 'small.json' is missing"):
        load_checkpoint(small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "not a JSON file"),
        (b"\xff\xfe\x00", "not a JSON file"),
        (b"[]", "not a checkpoint's card"),
        (b'{"name": "x"}', r"missing \['config', 'data'"),
    ],
)
def test_a_card_that_is_none(small, content, message):
    small.with_suffix(".json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_card(small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 99, this companion reads 1"),
        ({"extra": 1}, r"unexpected \['extra'\]"),
        ({"model": "subprocess.Popen"}, "only classes of companion are built"),
        ({"model": "companionship.Net"}, "only classes of companion are built"),
        ({"model": "companion.metrics.digit_cnn.nn.Linear"}, "does not have"),
        ({"model": "companion.metrics.digit_cnn.Tensor"}, "is no network class"),
        ({"model": "companion.metrics.digit_cnn.reduce"}, "is no network class"),
        ({"model": "companion.checkpoints.Card"}, "is no network class"),
        ({"model": "companion.not_here.Net"}, "does not have"),
        ({"model": "companion.metrics.digit_cnn.Missing"}, "does not have"),
        ({"model": "companion"}, "is no network class|only classes of companion"),
        ({"config": {"depth": 3}}, "has a config that .* refuses"),
        ({"config": {"width": 8}}, "do not fit"),
    ],
)
def test_a_card_that_asks_for_something_else(small, changes, message):
    change_card(small, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(small)
