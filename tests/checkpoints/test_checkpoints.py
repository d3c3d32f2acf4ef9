"""Checkpoints: what ships, saving and loading, and files that are not what they claim to be."""

import hashlib
import json
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import companion
from companion import checkpoints
from companion.checkpoints import (
    Card,
    CheckpointError,
    card,
    checkpoint_names,
    load_card,
    load_checkpoint,
    load_parent,
    save_card,
    save_checkpoint,
    stored_state,
)
from companion.checkpoints.weights import read_weights
from companion.data import load
from companion.measurement import Measurement
from companion.metrics.digit_cnn import DigitCNN, DigitCNNConfig
from companion.nn import CausalTransformer, TransformerConfig
from companion.training import accuracy

CLASS = "companion.metrics.digit_cnn.DigitCNN"


def tiny() -> DigitCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DigitCNN(DigitCNNConfig(width=4))


def new_card(**changes) -> Card:
    return Card(**{"name": "small", "recipe": {"name": "none"}} | changes)


@pytest.fixture
def small(tmp_path) -> Path:
    """A checkpoint of a small, untrained network; returns the path of its weights."""
    save_checkpoint(tiny(), new_card(), tmp_path)
    return tmp_path / "small.safetensors"


def change_card(path: Path, *, honest: bool = True, **changes) -> None:
    """Changes fields of a card; an honest change has its hash, one of a damaged file has not."""
    path = path.with_suffix(".json")
    content = json.loads(path.read_text()) | changes
    if honest:
        content["card_sha256"] = card._hash(content)
    path.write_text(json.dumps(content))


def vouch(path: Path) -> None:
    """Makes the card vouch for the weights as they are now."""
    change_card(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


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
        assert shipped.measurements
        assert shipped.format == 2
        assert len(shipped.card_sha256) == 64

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
    stated = load_card("digit-cnn").value("accuracy", data="digits")
    assert found == pytest.approx(stated, abs=0.002)
    assert found >= 0.988


# ---------------------------------------------------------------- saving and loading


def test_round_trip_is_half_precision(small):
    original = tiny()
    loaded = load_checkpoint(small)
    assert isinstance(loaded, DigitCNN)
    for key, value in original.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[key], expected), key


def test_a_path_may_be_text_or_name_the_card(small):
    assert isinstance(load_checkpoint(str(small)), DigitCNN)
    assert isinstance(load_checkpoint(small.with_suffix(".json")), DigitCNN)


def test_the_same_weights_give_the_same_file(small, tmp_path):
    again = save_checkpoint(load_checkpoint(small), new_card(), tmp_path / "again")
    assert again.sha256 == load_card(small).sha256
    assert hashlib.sha256(small.read_bytes()).hexdigest() == again.sha256


def test_a_save_that_is_interrupted_leaves_the_old_file(small, monkeypatch):
    before = small.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tiny(), new_card(), small.parent)
    monkeypatch.undo()
    assert small.read_bytes() == before
    assert sorted(p.name for p in small.parent.iterdir()) == ["small.json", "small.safetensors"]
    load_checkpoint(small)


@pytest.mark.parametrize("value", [65_504.0, 65_520.0, 70_000.0, -1e30])
def test_weights_beyond_half_precision_are_kept_in_single(tmp_path, value):
    model = tiny()
    with torch.no_grad():
        model.head.bias[0] = value
    save_checkpoint(model, new_card(), tmp_path)
    stored = load_file(tmp_path / "small.safetensors")
    wide = abs(value) > 65_504
    assert stored["head.bias"].dtype == (torch.float32 if wide else torch.float16)
    assert stored["head.weight"].dtype == torch.float16
    loaded = load_checkpoint(tmp_path)
    assert loaded.head.bias[0].item() == torch.tensor(value).item()
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    # What is measured before it is stored is what others load.
    model.load_state_dict(stored_state(model))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, small, value):
    model = tiny()
    with torch.no_grad():
        model.head.bias[0] = value
    with pytest.raises(CheckpointError, match=r"'head.bias' holds NaN or infinite values"):
        save_checkpoint(model, new_card(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    weights = load_file(small)
    weights["head.bias"][0] = value
    save_file(weights, small)
    vouch(small)
    with pytest.raises(CheckpointError, match=r"holds NaN or infinite values in 'head.bias'"):
        load_checkpoint(small)


def test_weights_beyond_single_precision_are_not_saved(tmp_path):
    model = tiny().double()
    with torch.no_grad():
        model.head.bias[0] = 1e39
    with pytest.raises(CheckpointError, match="beyond float32"):
        save_checkpoint(model, new_card(), tmp_path)


def test_a_card_of_another_network_is_not_saved(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"the network is a 'companion\.metrics\.digit_cnn\.DigitCNN'"
    ):
        save_checkpoint(tiny(), new_card(model="companion.vae.VAE"), tmp_path)
    with pytest.raises(CheckpointError, match="the card has the config"):
        save_checkpoint(tiny(), new_card(config={"width": 5}), tmp_path)
    with pytest.raises(CheckpointError, match="needs a dataclass `Config`"):
        save_checkpoint(nn.Linear(2, 2), new_card(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_transformer_with_tied_weights_comes_back_tied(tmp_path, tie, dtype):
    config = TransformerConfig(vocabulary=7, context=8, tie_weights=tie)
    model = CausalTransformer(config, torch.Generator().manual_seed(0)).to(dtype)
    saved = save_checkpoint(model, new_card(), tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == config
    assert (loaded.head.weight is loaded.token_embedding.weight) == tie
    assert ("head.weight" in load_file(tmp_path / "small.safetensors")) != tie
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().float()), key
    assert saved.parameters == sum(p.numel() for p in model.parameters())


def test_loading_costs_no_random_numbers(small):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_checkpoint(small)
    assert torch.equal(torch.rand(3), expected)


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"device 'cuda' was asked for, but this machine has no CUDA device"
    ):
        load_checkpoint("digit-cnn", "cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        load_checkpoint("digit-cnn", "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"'cuda:3' was asked for, but this machine has 1 CUDA device"
    ):
        load_checkpoint("digit-cnn", "cuda:3")


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


@pytest.mark.parametrize("file", ["log.csv", "weights.pt", "notes"])
def test_another_file_is_no_checkpoint(file, tmp_path, monkeypatch):
    """Whether its path has a folder in it or not, it is told what to name instead."""
    (tmp_path / file).write_text("step,loss\n1,0.5\n")
    monkeypatch.chdir(tmp_path)
    for name in (file, f"./{file}", tmp_path / file):
        with pytest.raises(CheckpointError, match=r"is no checkpoint: name one .*\.safetensors"):
            load_checkpoint(name)


def test_a_folder_stands_for_its_one_checkpoint(small, monkeypatch):
    folder = small.parent
    # As a run leaves it: states beside the checkpoint, each with JSON that is no card.
    save_file({"weight": torch.zeros(2)}, folder / "step-00000010.safetensors")
    (folder / "step-00000010.json").write_text('{"step": 10, "fingerprint": "x"}')
    save_file({"weight": torch.zeros(2)}, folder / "loose.safetensors")
    assert isinstance(load_checkpoint(folder), DigitCNN)
    assert load_card(str(folder)).name == "small"
    monkeypatch.chdir(folder.parent)
    assert load_card(folder.name).name == "small"
    save_checkpoint(tiny(), new_card(name="other"), folder)
    with pytest.raises(
        CheckpointError, match=r"several checkpoints: name one of other.safe.* small"
    ):
        load_checkpoint(folder)
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_checkpoint(folder / "empty")


# ---------------------------------------------------------------- parents


def test_a_parent_is_loaded_and_another_one_refused(small, tmp_path):
    parent = load_card(small)
    child = new_card(name="child", parents={"encoder": {"name": "small", "sha256": parent.sha256}})
    saved = save_checkpoint(tiny(), child, tmp_path)
    found = load_parent(load_card(tmp_path / "child.safetensors"), "encoder", tmp_path)
    assert isinstance(found, DigitCNN)
    with pytest.raises(KeyError, match="names no parent 'decoder'; it names: 'encoder'"):
        load_parent(saved, "decoder", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"builds on 'small' \(encoder\), which is not here"
    ):
        load_parent(saved, "encoder")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_checkpoint(DigitCNN(DigitCNNConfig(width=4)), new_card(), tmp_path)
    with pytest.raises(CheckpointError, match=r"builds on the 'small' \(encoder\) with SHA-256"):
        load_parent(saved, "encoder", tmp_path)


def test_a_parent_may_be_one_that_ships():
    sha256 = load_card("digit-cnn").sha256
    child = new_card(parents={"judge": {"name": "digit-cnn", "sha256": sha256}})
    assert load_parent(child, "judge").config == DigitCNNConfig()
    outside = {"name": "../digit-cnn", "sha256": sha256}
    with pytest.raises(CheckpointError, match="no name for a checkpoint"):
        load_parent(new_card(parents={"judge": outside}), "judge")
    with pytest.raises(CheckpointError, match="needs a name and the sha256"):
        new_card(parents={"judge": {"name": "digit-cnn"}})


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
    vouch(small)
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


def without_a_name(weights):
    del weights["head.bias"]


def with_another_name(weights):
    weights["more"] = torch.zeros(1)


def with_another_shape(weights):
    weights["head.bias"] = torch.zeros(11)


def with_whole_numbers(weights):
    weights["head.bias"] = torch.zeros(10, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_name, "they lack 'head.bias'"),
        (with_another_name, "they have 'more', which the network does not have"),
        (with_another_shape, r"'head.bias' has the shape \(11,\), the network \(10,\)"),
        (with_whole_numbers, "'head.bias' is torch.int64"),
        (dict.clear, "they lack '.*' and .* more"),
    ],
)
def test_weights_of_another_network_are_refused(small, change, message):
    weights = load_file(small)
    change(weights)
    save_file(weights, small)
    vouch(small)
    with pytest.raises(CheckpointError, match=f"do not fit {CLASS}: {message}"):
        load_checkpoint(small)


def write_table(path: Path, table: object, tail: bytes) -> None:
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + tail)
    vouch(path)


@pytest.mark.parametrize(
    "entries",
    [
        {key: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for key in "ab"},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 3]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e300]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
        {"a": None},
        {"a": 3},
        ["a"],
        3,
    ],
)
def test_odd_headers_are_refused(small, entries):
    write_table(small, entries, bytes(4))
    with pytest.raises(CheckpointError, match=r"'small.safetensors'"):
        load_checkpoint(small)


def test_a_deeply_nested_header_is_refused(small):
    header = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    small.write_bytes(struct.pack("<Q", len(header)) + header)
    vouch(small)
    with pytest.raises(CheckpointError, match="not a"):
        load_checkpoint(small)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 19_280])
def test_a_header_whose_length_looks_like_a_pickle_or_a_zip_loads(tmp_path, length):
    """The first two bytes of the file are those of its length: 80 02 … 80 05, or "PK" at 19,280."""
    path = tmp_path / "one.safetensors"
    save_file({"weight": torch.arange(3.0)}, path)
    content = path.read_bytes()
    old = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + old].ljust(length)
    path.write_bytes(struct.pack("<Q", length) + header + content[8 + old :])
    start = path.read_bytes()[:2]
    assert start == b"PK" or (start[:1] == b"\x80" and start[1:] in b"\x02\x03\x04\x05")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_weights(path, sha256)["weight"].tolist() == [0, 1, 2]


def test_a_whole_checkpoint_with_such_a_header_loads(small):
    content = small.read_bytes()
    old = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + old].ljust(19_280)
    small.write_bytes(struct.pack("<Q", 19_280) + header + content[8 + old :])
    vouch(small)
    assert isinstance(load_checkpoint(small), DigitCNN)


# ---------------------------------------------------------------- cards


def test_a_card_comes_back_as_it_was_written(tmp_path):
    measured = Measurement(
        name="FID",
        value=1.5,
        data="digits",
        split="test",
        better="lower",
        of="prior",
        samples=1000,
        seed=0,
    )
    given = new_card(
        measurements=(measured, replace(measured, name="−ELBO", unit="nats", spread=0.1)),
        evaluation={"samples": 1000, "seed": 0, "batch_size": 100},
        parents={"encoder": {"name": "other", "sha256": "0" * 64}},
        data={"name": "digits", "größe": 3},
        precision="32-true",
        seconds=3,
    )
    saved = save_checkpoint(tiny(), given, tmp_path)
    found = load_card(tmp_path)
    assert found == saved
    assert found.config == {"width": 4, "classes": 10}
    assert found.model == CLASS
    assert found.value("FID") == 1.5
    assert found.value("−ELBO", data="digits", of="prior") == 1.5
    with pytest.raises(KeyError, match="no measurement is 'KID'"):
        found.value("KID")
    again = save_card(
        replace(found, measurements=(replace(measured, value=float("nan")),)), tmp_path
    )
    assert load_card(tmp_path) == again
    with pytest.raises(ValueError, match="was not finite"):
        again.value("FID")


def test_a_card_that_json_cannot_say_is_not_written(tmp_path):
    for bad in ({"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(CheckpointError, match="cannot be written as JSON"):
            save_card(new_card(recipe=bad), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["", ".hidden", "a/b", "../up", "a\\b", "-flag", "a b", "a\n", "x" * 101]
)
def test_names_that_lead_elsewhere_are_refused(small, name):
    with pytest.raises(CheckpointError, match="no name for a checkpoint"):
        new_card(name=name)
    change_card(small, name=name)
    with pytest.raises(CheckpointError, match="no name for a checkpoint"):
        load_card(small)


@pytest.mark.parametrize("name", ["vae", "my.vae-2", "µ_3", "x" * 100])
def test_ordinary_names_are_taken(name):
    assert new_card(name=name).name == name


def test_a_missing_card(small):
    small.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=r"card 'small.json' is missing"):
        load_checkpoint(small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b"not json", "not a JSON file"),
        (b"\xff\xfe\x00", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not a JSON file"),
        (b'{"steps": NaN}', "not a JSON file"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "not a JSON file"),
        (b" " * 10_000_001, "not a checkpoint's card: it has 10,000,001 bytes"),
        (b"[]", "not a checkpoint's card"),
        (b'{"name": "x"}', "it has no 'format'"),
        (b'{"name": "x", "format": 1}', "'config' must be an object"),
    ],
)
def test_a_card_that_is_none(small, content, message):
    small.with_suffix(".json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_card(small)


@pytest.mark.parametrize("field", ["name", "steps", "sha256", "config", "measurements", "packages"])
def test_every_change_to_a_card_is_noticed(small, field):
    content = json.loads(small.with_suffix(".json").read_text())
    other = content[field] + 1 if isinstance(content[field], int) else "0"
    change_card(small, honest=False, **{field: other})
    with pytest.raises(CheckpointError, match=r"card 'small.json' was altered"):
        load_checkpoint(small)
    change_card(small, honest=False, **{field: content[field]})
    load_checkpoint(small)


def test_a_card_without_its_hash_or_the_needed_fields_is_refused(small):
    text = small.with_suffix(".json").read_text()
    for field in ("card_sha256", "name", "model", "config", "sha256"):
        content = json.loads(text)
        del content[field]
        if field != "card_sha256":
            content["card_sha256"] = card._hash(content)
        small.with_suffix(".json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=rf"was altered|missing \['{field}'\]"):
            load_card(small)


def test_fields_of_later_versions_are_ignored_and_missing_ones_have_defaults(small):
    change_card(small, extra={"from": "the future"})
    assert isinstance(load_checkpoint(small), DigitCNN)
    content = json.loads(small.with_suffix(".json").read_text())
    kept = {key: content[key] for key in ("name", "model", "config", "sha256", "format")}
    kept["card_sha256"] = card._hash(kept)
    small.with_suffix(".json").write_text(json.dumps(kept))
    found = load_card(small)
    assert (found.measurements, found.parents, found.steps) == ((), {}, 0)
    # The packages of this machine did not train it.
    assert found.packages == {}
    assert isinstance(load_checkpoint(small), DigitCNN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 99, this companion reads 1 and 2"),
        ({"model": 1.0}, "Expected `str`, got `float`"),
        ({"recipe": []}, "Expected `object`, got `array`"),
        ({"parameters": None}, "Expected `int`, got `null`"),
        ({"parameters": -1}, "parameters must be a whole number of at least 0"),
        ({"steps": 1.5}, "Expected `int`, got `float`"),
        ({"seconds": -1}, "seconds must be a finite number of at least 0"),
        ({"measurements": [{"name": "FID"}]}, "value"),
        ({"measurements": [{"name": "FID", "value": "x"}]}, "Expected `float"),
        ({"parents": {"a": {"name": "b"}}}, "needs a name and the sha256"),
        ({"model": "subprocess.Popen"}, "only classes of companion are built"),
        ({"model": "companionship.Net"}, "only classes of companion are built"),
        ({"model": "companion.__main__.Net"}, "only classes of companion are built"),
        ({"model": "companion..Net"}, "only classes of companion are built"),
        ({"model": "companion.metrics.digit_cnn.nn.Linear"}, "does not have"),
        ({"model": "companion.metrics.digit_cnn.Tensor"}, "is no network class"),
        ({"model": "companion.metrics.digit_cnn.reduce"}, "is no network class"),
        ({"model": "companion.metrics.digit_cnn.DigitCNNConfig"}, "is no network class"),
        ({"model": "companion.checkpoints.card.Card"}, "is no network class"),
        ({"model": "companion.autoencoder.LinearAutoencoder"}, "no network class with a config"),
        ({"model": "companion.not_here.Net"}, "does not have"),
        ({"model": "companion.metrics.digit_cnn.Missing"}, "does not have"),
        ({"model": "companion"}, "only classes of companion"),
        ({"model": ""}, "only classes of companion"),
        ({"config": {"depth": 3}}, "refuses: there is no 'depth'"),
        ({"config": {"width": "4"}}, r"Expected `int`, got `str` - at `\$.width`"),
        ({"config": {"width": 4.5}}, "Expected `int`, got `float`"),
        ({"config": {"width": True}}, "Expected `int`, got `bool`"),
        ({"config": {"width": -1}}, "width must be a whole number of at least 1, got -1"),
        ({"config": {"width": 8}}, "do not fit"),
        ({"config": {"width": 2**40}}, "refuses|do not fit"),
        ({"config": {"width": 10**9}}, "refuses|do not fit"),
        ({"config": {"width": 2**63 - 1}}, "refuses|do not fit"),
    ],
)
def test_a_card_that_asks_for_something_else(small, changes, message):
    change_card(small, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(small)


@pytest.mark.parametrize("settings", [{"layers": 10**12}, {"layers": 1000}, {"context": 10**15}])
def test_a_card_cannot_exhaust_memory_or_time(tmp_path, settings):
    config = TransformerConfig(vocabulary=7, context=8)
    save_checkpoint(CausalTransformer(config), new_card(), tmp_path)
    path = tmp_path / "small.safetensors"
    change_card(path, config=load_card(path).config | settings)
    with pytest.raises(CheckpointError, match=r"refuses|do not fit"):
        load_checkpoint(path)


# ---------------------------------------------------------------- format 1

OLD = Path(__file__).parent / "format_1"


@pytest.mark.parametrize("name", checkpoint_names())
class TestFormat1:
    def test_an_old_card_loads_its_weights(self, name, tmp_path):
        for file in (OLD / f"{name}.json", checkpoints.SHIPPED / f"{name}.safetensors"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        old, new = load_checkpoint(tmp_path), load_checkpoint(name)
        assert old.config == new.config
        for key, value in new.state_dict().items():
            assert torch.equal(old.state_dict()[key], value), key

    def test_the_weights_that_ship_are_those_of_the_old_card(self, name):
        """Bit for bit: cards were rewritten, weights were not."""
        content = (checkpoints.SHIPPED / f"{name}.safetensors").read_bytes()
        stated = json.loads((OLD / f"{name}.json").read_text())["sha256"]
        assert hashlib.sha256(content).hexdigest() == stated == load_card(name).sha256

    def test_every_number_is_still_there(self, name):
        metrics = json.loads((OLD / f"{name}.json").read_text())["metrics"]
        found = card.read_card(OLD / f"{name}.json").measurements
        numbers = [m.value for m in found] + [m.spread for m in found if m.spread is not None]
        numbers += [1000.0] if any(m.samples == 1000 for m in found) else []
        assert sorted(numbers) == sorted(metrics.values())


def test_what_was_prose_is_told_apart():
    old = {name: card.read_card(OLD / f"{name}.json") for name in checkpoint_names()}
    assert old["vae"].value("−ELBO", data="mnist") == pytest.approx(89.106, abs=1e-3)
    assert old["vae"].value("reconstruction term", data="digits") == pytest.approx(61.141, abs=1e-3)
    fid = next(m for m in old["autoencoder"].measurements if m.name == "FID")
    assert fid == Measurement(
        name="FID",
        value=1.573497938521598,
        data="digits",
        split="test",
        better="lower",
        of="codes from a mixture",
        samples=1000,
    )
    noisy = old["denoising-autoencoder"]
    assert noisy.value("reconstruction PSNR", data="mnist", of="noise 0.5", unit="dB") == (
        pytest.approx(21.289, abs=1e-3)
    )
    probe = next(m for m in noisy.measurements if m.name == "linear probe accuracy")
    assert (probe.of, probe.spread) == ("100 labels", pytest.approx(0.01163, abs=1e-5))
    assert old["gan"].precision == "bf16-mixed"
    assert old["vae-gan"].recipe["observation_precision"] == 10.0
    assert old["masked-autoencoder"].recipe["mask_ratio"] == 0.75
    assert old["masked-autoencoder"].recipe["width"] == 64
    assert old["vae-gan"].value("training encoder/reconstruction") == pytest.approx(55.42, abs=0.01)
