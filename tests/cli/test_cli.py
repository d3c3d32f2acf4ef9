"""The command line: what it does, what it says of mistakes, and its exit codes."""

import errno
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from companion import cli, recipes
from companion.checkpoints import load_card, load_checkpoint
from companion.cli import main
from companion.cli.train import TrainOptions, recipe_flags
from companion.data import DATASETS, load
from companion.data.downloads import SOURCES
from companion.measurement import Measurement, find
from companion.training import Trainer

TINY = ["--batch-size", "8", "--width", "4", "--log-every", "2"]
VAE = [
    "--data",
    "digits",
    "--architecture",
    "mlp",
    "--width",
    "1",
    "--latent-dim",
    "2",
    "--iwae",
    "0",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of 24 grey pictures in two classes."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    rng = np.random.default_rng(0)
    for i in range(24):
        kind = folder / ("dark", "light")[i % 2]
        kind.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (28, 28), dtype=np.uint8) + 127 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(kind / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    """The folder of a finished run of five steps."""
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    words = ["train", "digit-cnn", "--data", str(pictures), "--steps", "5", "--output", str(folder)]
    assert main([*words, *TINY]) == 0
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """The path of a generative network's checkpoint, hardly trained."""
    folder = tmp_path_factory.mktemp("runs") / "vae"
    options = ["--steps", "3", "--batch-size", "8", "--samples", "20", "--output", str(folder)]
    assert main(["train", "vae", *VAE, *options]) == 0
    return folder / "vae.safetensors"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No data set has been downloaded, and none can be."""
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "none"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)


def fails(capsys, words: list[str], code: int, *parts: str) -> str:
    """Runs a command that must fail with this code and one line that has all these parts."""
    capsys.readouterr()
    assert main(words) == code
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert captured.out == ""
    for part in parts:
        assert part in message
    assert "Traceback" not in captured.err
    return message


# --- Help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_names_every_command_and_exit_code(words, capsys):
    assert main(words) == 0
    said = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} ", said, re.M)
    for code in (cli.DONE, cli.FAILED, cli.WRONG_USAGE, cli.DIVERGED, 130, 143):
        assert re.search(rf"^  {code} +\w", said, re.M)
    for line in re.findall(r"^  companion (\w+) .*", said, re.M):
        assert line in cli.COMMANDS


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"companion {command}" in said
    assert "example" in said


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_recipe_has_help_with_all_its_settings(name, capsys):
    assert main(["train", name, "--help"]) == 0
    said = capsys.readouterr().out
    for flag in recipe_flags(recipes.RECIPES[name]):
        assert re.search(rf"{flag.name}\b", said), flag.name
        assert flag.about, flag.name
    for field in fields(TrainOptions()):
        assert f"--{field.name.replace('_', '-')}" in said, field.name
    for hidden in ("--size", "--classes", "--network"):
        assert not re.search(rf"{hidden}\b", said)


def test_help_of_training_lists_the_recipes(capsys):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    for name in recipes.RECIPES:
        assert re.search(rf"^  {name} +\w", said, re.M)


def test_no_command_is_wrong_usage_and_shows_the_help(capsys):
    assert main([]) == cli.WRONG_USAGE
    assert "usage: companion COMMAND" in capsys.readouterr().out


# --- Mistakes on the command line ---------------------------------------------------------------------------------

MISTAKES = {
    "trian digit-cnn": ["'trian'", "Did you mean 'train'?"],
    "train digit-cnm": ["unknown recipe 'digit-cnm'", "Did you mean 'digit-cnn'?"],
    "train": ["RECIPE is missing", "companion train RECIPE", "companion train --help"],
    "train --steps 3": ["RECIPE comes before the flags", "'--steps'"],
    "train digit-cnn --stepz 3": ["unknown flag --stepz", "Did you mean --steps?"],
    "train digit-cnn --learning_rat 3": ["unknown flag --learning_rat", "--learning-rate?"],
    "train digit-cnn --steps many": ["--steps", "'many' is no whole number"],
    "train digit-cnn --learning-rate fast": ["--learning-rate", "'fast' is no number"],
    "train digit-cnn --ema lots": ["--ema", "'lots' is neither none nor a number"],
    "train digit-cnn --steps": ["--steps needs a value"],
    "train digit-cnn --resume --steps": ["--steps needs a value"],
    "train digit-cnn --precision fp16": ["'fp16'", "auto, 32-true, bf16-mixed"],
    "train digit-cnn --precision bf16": ["'bf16'", "Did you mean bf16-mixed?"],
    "train digit-cnn --resume maybe": ["unexpected: maybe"],
    "train digit-cnn --size 3": ["unknown flag --size"],
    "train digit-cnn --steps 1e23": ["--steps: '1e23' is no whole number"],
    "train digit-cnn --steps 100000000000000000000000": [
        "steps must be a whole number",
        "1,000,000,000",
    ],
    "train digit-cnn --seed 99999999999999999999": ["seed must be a whole number"],
    "train digit-cnn --width 0": ["width must be a whole number of at least 1, got 0"],
    "train digit-cnn --data digits --width 999999999999": ["Lower its widths"],
    "train digit-cnn --data digits --width 30000": ["parameters, whose training needs", "GiB"],
    "train vae --latent-dim 0": ["latent_dim must be a whole number", "got 0"],
    "train vae --beta nan": ["beta must be a finite number", "nan"],
    "train vae --iwae -4": ["iwae must be a whole number", "-4"],
    "train vae --data digits --samples 0": ["samples must be at least 10, got 0"],
    "train vae --data digits --samples 999999999999": ["samples must be at most 1,000,000"],
    "train vae --data digits --validation 0.1": ["validation is for images of your own"],
    "train vae --data digits --init-from gan": ["'gan' is a GAN", "trains a VAE"],
    "train vae --data digits --init-from vae --latent-dim 7": ["latent_dim 32 instead of 7"],
    "train gan --data digits --compile --r1 1": ["second derivatives"],
    "train digit-cnn --accelerator tpu": ["'tpu'", "auto", "cpu", "cuda"],
    "train digit-cnn now": ["unexpected: now"],
    "train digit-cnn --steps 0": ["steps must be a whole number", "got 0"],
    "train digit-cnn --ema 2": ["ema must be a finite number above 0 and below 1", "2"],
    "train digit-cnn --devices 0": ["at least one device", "0"],
    "train digit-cnn --data minst": ["unknown data 'minst'", "Did you mean 'mnist'?", "./name"],
    "train digit-cnn --data digits --batch-size 5000": ["batch_size is 5000", "only 4000"],
    "train digit-cnn --data digits --batch-size 9 --accumulate 2": ["multiple of 2"],
    "sample": ["CHECKPOINT is missing"],
    "sample digit-cn": ["unknown checkpoint 'digit-cn'", "Did you mean 'digit-cnn'?"],
    "sample digit-cnn": ["'digit-cnn' (a network of the class DigitCNN) cannot draw images"],
    "sample digit-cnn --n 0": ["--n must be at least 1, got 0"],
    "sample digit-cnn --out grid.gif": [
        "--out must end in .png, .jpg, .jpeg, .webp or .npy",
        "'grid.gif'",
    ],
    "sample vae --n 999999999999": ["--n 999,999,999,999 images", "too large for .png"],
    "sample vae --n 999999999999 --out a.npy": ["--n is at most"],
    "sample vae --columns 99999 --n 99999 --out a.webp": ["too large for .webp"],
    "sample vae --seed -1": ["seed must not be negative"],
    "evaluate vae --image-size 28": ["--image-size is about the images of --data"],
    "evaluate gan --weights x": ["weights are for the extractor 'inception'"],
    "compare digits/test gan --weights x": ["weights are for the extractor 'inception'"],
    "evaluate gan --features digit-cnn --weights x": ["weights are for the extractor 'inception'"],
    "evaluate gan --features incepton": ["unknown feature extractor", "Did you mean 'inception'?"],
    "compare digits": ["FAKE is missing", "companion compare REAL FAKE"],
    "compare": ["REAL is missing"],
    "compare digits/test digts": ["unknown images 'digts'", "Did you mean 'digits'?"],
    "compare digits/tst gan": ["unknown split 'tst'", "Did you mean 'test'?", "train"],
    "compare digits/test vae --n 3": ["--n must be at least 10"],
    "compare digits/test digit-cnn": ["DigitCNN) cannot draw images"],
    "evaluate digit-cn": ["unknown checkpoint 'digit-cn'"],
    "evaluate digit-cnn --jsn": ["unknown flag --jsn", "Did you mean --json?"],
    "evaluate digit-cnn --samples 3": ["samples must be at least 10, got 3"],
    "evaluate digit-cnn --data mnits": ["unknown data 'mnits'", "Did you mean 'mnist'?"],
    "fetch minst": ["unknown dataset 'minst'", "Did you mean 'mnist'?"],
    "fetch mnist --force": ["unknown flag --force"],
    "list all": ["unexpected: all"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_wrong_usage(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, words.split(), cli.WRONG_USAGE, *MISTAKES[words])
    assert not any(p.suffix for p in tmp_path.rglob("*"))  # at most an empty folder of a run


def test_a_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("COMPANION_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown recipe"):
        main(["train", "digit-cnm"])


# --- What the user can mend ---------------------------------------------------------------------------------------


def test_missing_checkpoint_file(capsys, tmp_path):
    path = str(tmp_path / "gone.safetensors")
    fails(capsys, ["evaluate", path], cli.FAILED, "there is no checkpoint file", path)


def test_altered_checkpoint(capsys, tmp_path, trained):
    for name in ("digit-cnn.safetensors", "digit-cnn.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    path = tmp_path / "digit-cnn.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    fails(capsys, ["evaluate", str(path)], cli.FAILED, "was altered", "Fetch both files again")


def test_missing_folder_of_pictures(capsys, tmp_path):
    words = ["train", "digit-cnn", "--data", str(tmp_path / "none"), "--output", str(tmp_path)]
    fails(capsys, words, cli.FAILED, str(tmp_path / "none"))


def test_missing_data_offline(capsys, tmp_path, offline):
    capsys.readouterr()
    words = ["train", "digit-cnn", "--data", "mnist", "--output", str(tmp_path / "out")]
    assert main(words) == cli.FAILED
    said = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz could not be downloaded" in said
    assert str(tmp_path / "none" / "mnist") in said
    assert "Traceback" not in said
    assert main(["fetch", "mnist"]) == cli.FAILED


def test_a_folder_in_use(capsys, trained, pictures):
    words = ["train", "digit-cnn", "--data", str(pictures), "--output", str(trained), *TINY]
    fails(capsys, [*words, "--steps", "5"], cli.FAILED, "holds a run already", "--resume")


def test_resuming_with_other_settings(capsys, trained, pictures):
    words = ["train", "digit-cnn", "--data", str(pictures), "--output", str(trained), *TINY]
    options = ["--steps", "5", "--learning-rate", "0.5", "--resume"]
    fails(capsys, [*words, *options], cli.FAILED, "learning_rate: 0.004 → 0.5")


def test_an_output_that_cannot_be_written(capsys, trained, pictures, tmp_path, vae):
    (tmp_path / "file").write_text("in the way")
    place = str(tmp_path / "file" / "out")
    words = ["train", "digit-cnn", "--data", str(pictures), "--steps", "5", *TINY]
    fails(capsys, [*words, "--output", place], cli.FAILED, "Not a directory", place)
    fails(capsys, ["sample", str(vae), "--out", f"{place}.png"], cli.FAILED, str(tmp_path / "file"))
    path = str(trained / "digit-cnn.safetensors")
    assert main(["evaluate", path, "--json", f"{place}.json"]) == cli.FAILED
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_full_disk(capsys, pictures, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("companion.training.state.write_atomically", full)
    words = ["train", "digit-cnn", "--data", str(pictures), "--output", str(tmp_path / "out")]
    message = fails(capsys, [*words, "--steps", "2", *TINY], cli.FAILED, "no room", "Make room")
    assert "Errno" not in message


def test_a_training_that_diverges(capsys, pictures, tmp_path):
    words = ["train", "digit-cnn", "--data", str(pictures), "--output", str(tmp_path / "out")]
    options = ["--steps", "50", "--learning-rate", "1e30", "--precision", "32-true", *TINY]
    fails(capsys, [*words, *options], cli.DIVERGED, "not finite", "lower learning rate")


def test_memory_that_does_not_suffice(capsys, monkeypatch):
    def big(arguments):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr("companion.cli.listing.run", big)
    fails(capsys, ["list"], cli.FAILED, "lower --batch-size", "80 GiB")


def test_of_several_processes_on_a_machine_one_speaks(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "digit-cnm"]) == cli.WRONG_USAGE
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(capsys, trained, pictures, tmp_path):
    # A state that was cut off is refused by name, and the one before it is used.
    out = tmp_path / "out"
    words = ["train", "digit-cnn", "--data", str(pictures), "--output", str(out), "--steps", "4"]
    words += [*TINY, "--save-every", "2"]
    assert main(words) == 0
    damaged = out / "step-00000004.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^warning: 'step-00000004.safetensors' is truncated", said, re.M)
    assert "UserWarning" not in said


# --- Training -----------------------------------------------------------------------------------------------------


def test_training_writes_a_checkpoint_that_says_what_made_it(trained, pictures):
    card = load_card(trained / "digit-cnn.safetensors")
    assert card.recipe["name"] == "digit-cnn"
    assert card.recipe["width"] == card.config["width"] == 4
    assert card.recipe["steps"] == card.steps == 5
    assert card.recipe["data"] == str(pictures)
    assert card.data["images"] == 24
    assert card.config["classes"] == 2
    assert {m.label for m in card.measurements} == {"training loss", "pictures/train: accuracy"}
    assert card.data["classes"] == ["dark", "light"]
    assert "held out" not in card.data
    assert card.evaluation == {"samples": 1000, "seed": 0, "batch_size": 100}
    assert (trained / "log.csv").read_text().startswith("step,")
    network = load_checkpoint(trained / "digit-cnn.safetensors")
    assert torch.equal(network.head.weight, network.head.weight.half().float())


def test_its_measures_are_those_of_the_stored_weights(trained, tmp_path):
    out = tmp_path / "numbers.json"
    assert main(["evaluate", str(trained / "digit-cnn.safetensors"), "--json", str(out)]) == 0
    card = load_card(trained / "digit-cnn.safetensors")
    (found,) = json.loads(out.read_text())["measurements"]
    assert found["name"] == "accuracy"
    assert found["split"] == "train"
    assert found["value"] == card.value("accuracy")


def test_the_same_command_gives_the_same_weights(trained, pictures, tmp_path, capsys):
    words = ["train", "digit-cnn", "--data", str(pictures), "--steps", "5", *TINY]
    assert main([*words, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "pictures/train: accuracy" in said
    assert str(tmp_path / "digit-cnn.safetensors") in said
    same = [(f / "digit-cnn.safetensors").read_bytes() for f in (trained, tmp_path)]
    assert same[0] == same[1]


def test_the_default_folder_is_named_after_the_recipe(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digit-cnn", "--data", str(pictures), "--steps", "2", *TINY]) == 0
    assert (tmp_path / "runs" / "digit-cnn" / "digit-cnn.safetensors").is_file()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_training_that_is_stopped_goes_on_exactly(
    number, code, trained, pictures, tmp_path, capsys, monkeypatch
):
    words = ["train", "digit-cnn", "--data", str(pictures), "--steps", "5", *TINY]
    words += ["--output", str(tmp_path / "a run")]
    advance = Trainer.advance

    def stopped(trainer):
        if trainer.step == 2:
            os.kill(os.getpid(), number)
        return advance(trainer)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(Trainer, "advance", stopped)
    assert main(words) == code
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert "Stopped at step 3 of 5; the state is saved. Go on with" in said
    assert not (tmp_path / "a run" / "digit-cnn.safetensors").exists()
    again = shlex.split(said.strip().splitlines()[-1])
    assert again[0] == "companion"
    assert main(again[1:]) == 0
    same = [(f / "digit-cnn.safetensors").read_bytes() for f in (trained, tmp_path / "a run")]
    assert same[0] == same[1]


def test_a_process_that_torchrun_starts_again_goes_on(trained, pictures, tmp_path, monkeypatch):
    words = ["train", "digit-cnn", "--data", str(pictures), "--steps", "5", *TINY]
    words += ["--output", str(tmp_path), "--save-every", "2"]
    advance = Trainer.advance

    def killed(trainer):
        if trainer.step == 3:
            raise RuntimeError("the worker dies")
        return advance(trainer)

    monkeypatch.setattr(Trainer, "advance", killed)
    with pytest.raises(RuntimeError, match="the worker dies"):
        main(words)
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(words) == 0
    same = [(f / "digit-cnn.safetensors").read_bytes() for f in (trained, tmp_path)]
    assert same[0] == same[1]


def test_ctrl_c_elsewhere(capsys, monkeypatch):
    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("companion.cli.listing.run", stopped)
    assert main(["list"]) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


# --- Sampling and evaluation --------------------------------------------------------------------------------------


def test_sampling_draws_a_picture_that_its_seed_decides(vae, tmp_path, capsys):
    def draw(name, *more):
        out = tmp_path / "new" / name
        assert (
            main(["sample", str(vae), "--n", "5", "--columns", "3", "--out", str(out), *more]) == 0
        )
        return np.asarray(Image.open(out))

    first = draw("a.png")
    assert first.shape == (2 * 28 + 2, 3 * 28 + 4)  # two rows of three, two pixels apart
    assert "5 images of 28×28 from vae, seed 0" in capsys.readouterr().out
    assert (draw("b.png") == first).all()
    assert (draw("c.png", "--seed", "1") != first).any()


def test_sampling_as_an_array(vae, tmp_path):
    out = tmp_path / "images.npy"
    assert main(["sample", str(vae), "--n", "70", "--out", str(out)]) == 0
    images = np.load(out)
    assert images.shape == (70, 1, 28, 28)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 70


def test_what_cannot_sample_says_who_can(vae, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("companion.checkpoints.checkpoint_names", lambda: ("digit-cnn", str(vae)))
    fails(capsys, ["sample", "digit-cnn"], cli.WRONG_USAGE, f"These can: {vae}.")
    monkeypatch.setattr("companion.checkpoints.checkpoint_names", lambda: ("digit-cnn",))
    fails(capsys, ["sample", "digit-cnn"], cli.WRONG_USAGE, "None of the checkpoints that ship can")


def test_evaluation_prints_a_table_and_writes_json(vae, tmp_path, capsys):
    out = tmp_path / "new" / "numbers.json"
    words = ["evaluate", str(vae), "--samples", "20", "--json", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    content = json.loads(out.read_text(encoding="utf-8"))
    card = load_card(vae)
    assert content["checkpoint"] == "vae"
    assert content["parameters"] == card.parameters
    assert content["sha256"] == card.sha256
    assert content["data"] == "digits"
    assert content["evaluation"] == {"samples": 20, "seed": 0, "batch_size": 100}
    found = [Measurement(**m) for m in content["measurements"]]
    assert find(found, "FID").value > 0
    assert find(found, "FID").samples == 20
    kept = [m for m in card.measurements if not m.name.startswith("training ")]
    assert {m.label: m.value for m in found} == pytest.approx({m.label: m.value for m in kept})
    assert len(said) == 1 + len(found)
    assert len({len(line) for line in said[1:]}) == 1  # aligned
    assert main(words) == cli.WRONG_USAGE
    assert "is there already; give another name, or --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert main([*words[:-1], "-"]) == 0
    assert json.loads(capsys.readouterr().out) == content


def test_evaluation_on_other_data(pictures, trained, vae, capsys):
    words = ["evaluate", str(vae), "--samples", "20", "--data", str(pictures), "--json", "-"]
    assert main(words) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["data"] == str(pictures)
    names = {m["name"] for m in content["measurements"]}
    assert "FID" not in names
    assert "−ELBO" in names
    assert {(m["data"], m["split"]) for m in content["measurements"]} == {("pictures", "test")}
    assert main([*words, "--features", "digit-cnn"]) == 0
    assert "FID" in {m["name"] for m in json.loads(capsys.readouterr().out)["measurements"]}


def test_data_of_another_shape(vae, capsys, tmp_path, monkeypatch):
    colours = replace(
        load("digits", "test")[:20],
        images=torch.zeros(20, 3, 32, 32).byte(),
        classes=SOURCES["cifar10"].classes,
        kind="images",
        name="cifar10",
    )
    monkeypatch.setattr("companion.recipes.base.load", lambda *_, **__: colours)
    words = ["evaluate", str(vae), "--data", "cifar10"]
    fails(capsys, words, cli.WRONG_USAGE, "'cifar10' are 3×32×32", "takes 1×28×28")
    words = ["train", "digit-cnn", "--data", "cifar10", "--output", str(tmp_path)]
    fails(capsys, words, cli.WRONG_USAGE, "takes grey 28×28 images", "colour 32×32", "--channels 1")


def test_a_shipped_checkpoint_is_measured_offline(capsys, offline):
    assert main(["evaluate", "digit-cnn"]) == 0
    captured = capsys.readouterr()
    measured = re.search(r"digits/test: accuracy +([\d.]+)", captured.out)[1]
    assert float(measured) == load_card("digit-cnn").value("accuracy", data="digits")
    assert "companion fetch mnist" in captured.err


def test_what_is_not_finite_is_said(monkeypatch, trained, pictures, capsys):
    found = [
        Measurement(name="PSNR", value=float("inf"), unit="dB"),
        Measurement(name="b", value=1.5, spread=0.25),
    ]
    monkeypatch.setattr(recipes.DigitCNNRecipe, "evaluate", lambda *_: found)
    path = str(trained / "digit-cnn.safetensors")
    assert main(["evaluate", path, "--json", "-"]) == 0
    said = json.loads(capsys.readouterr().out)["measurements"]
    assert [(m["name"], m["value"]) for m in said] == [("PSNR", None), ("b", 1.5)]
    assert main(["evaluate", path]) == 0
    said = capsys.readouterr().out
    assert re.search(r"PSNR, dB +not finite", said)
    assert re.search(r"b +1\.5000 ± 0\.2500", said)


# --- Listing and fetching -----------------------------------------------------------------------------------------


def test_list_names_everything_with_its_numbers(capsys, offline, tmp_path):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for name in recipes.RECIPES:
        assert re.search(rf"^  {name} +{re.escape(recipes.RECIPES.summary(name))}$", said, re.M)
    card = load_card("digit-cnn")
    assert f"digit-cnn: DigitCNN, {card.parameters:,} parameters, {card.steps:,} steps" in said
    assert re.search(r"digits/test: accuracy +0\.99", said)
    assert re.search(r"digits +embedded", said)
    assert re.search(r"mnist +not downloaded", said)
    assert str(tmp_path / "none") in said


def test_a_variant_says_in_what_it_differs(capsys):
    assert main(["list"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("  gan-cifar10 ")]
    assert "As gan, but" in line
    assert "CIFAR-10" in line
    assert "100,000 steps" in line


def test_list_as_json(tmp_path, capsys):
    out = tmp_path / "all.json"
    assert main(["list", "--json", str(out)]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert set(content["recipes"]) == set(recipes.RECIPES)
    found = content["checkpoints"]["digit-cnn"]["measurements"]
    assert tuple(Measurement(**m) for m in found) == load_card("digit-cnn").measurements
    assert set(content["data sets"]) == set(DATASETS)
    assert content["data sets"]["digits"] == "embedded"


def test_list_knows_what_is_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    folder = tmp_path / "mnist"
    folder.mkdir()
    for split in SOURCES["mnist"].splits.values():
        for resource in split:
            (folder / resource.file.removesuffix(".gz")).touch()
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  mnist +downloaded", said, re.M)
    assert re.search(r"^  cifar10 +not downloaded", said, re.M)


def test_fetch_says_what_there_is_and_where(capsys, monkeypatch, tmp_path):
    assert main(["fetch", "digits"]) == 0
    assert "digits: 4,000 training and 1,000 test images" in capsys.readouterr().out
    asked = []

    def small(name, split):
        asked.append((name, split))
        return load("digits", split)[:3]

    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    monkeypatch.setattr("companion.data.load", small)
    assert main(["fetch", "mnist"]) == 0
    assert asked == [("mnist", "train"), ("mnist", "test")]
    assert str(tmp_path / "mnist") in capsys.readouterr().out


# --- In processes of their own ------------------------------------------------------------------------------------


def companion(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "MASTER_ADDR")}
    return subprocess.run(
        [sys.executable, "-m", "companion", *words],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_python_m_companion_ends_with_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["companion", "train", "digit-cnm"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("companion", run_name="__main__")
    assert stop.value.code == cli.WRONG_USAGE
    said = capsys.readouterr().err
    assert said.startswith("error: unknown recipe 'digit-cnm'")
    assert len(said.splitlines()) == 1


@pytest.mark.system
def test_two_processes_train_one_checkpoint(pictures, tmp_path):
    words = ["train", "vae", *VAE, "--steps", "3", "--batch-size", "8", "--samples", "20"]
    words += ["--precision", "32-true", "--accelerator", "cpu"]
    result = companion(*words, "--devices", "2", "--output", "two", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    one, two = (load_card(tmp_path / n / "vae.safetensors") for n in ("one", "two"))
    assert "2 processes" in two.device
    assert two.value("training loss") == pytest.approx(one.value("training loss"), rel=1e-4)
    assert two.value("FID") == pytest.approx(one.value("FID"), rel=0.02)


# --- What a user's own images ask for -----------------------------------------------------------------------------


def save(folder: Path, count: int, shape: tuple[int, ...], classes: tuple[str, ...] = ()) -> Path:
    rng = np.random.default_rng(1)
    for i in range(count):
        place = folder / classes[i % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i:03}.png")
    return folder


def test_pictures_keep_their_size_and_colour(tmp_path):
    data = save(tmp_path / "colours", 20, (32, 32, 3))
    words = ["train", "vae", *VAE[2:], "--data", str(data), "--steps", "2", "--batch-size", "4"]
    words += ["--samples", "10", "--validation", "0.2", "--output"]
    assert main([*words, str(tmp_path / "a")]) == 0
    card = load_card(tmp_path / "a")
    assert (card.config["channels"], card.config["size"]) == (3, 32)
    assert card.data["images"] == 16
    assert card.data["held out"] == "colours/validation"
    assert {m.split for m in card.measurements if m.data} == {"validation"}
    options = ["--image-size", "16", "--channels", "1"]
    assert main([*words, str(tmp_path / "b"), *options]) == 0
    card = load_card(tmp_path / "b")
    assert (card.config["channels"], card.config["size"]) == (1, 16)


def test_test_data_of_one_s_own(tmp_path, capsys):
    data = save(tmp_path / "mine", 12, (28, 28), ("cats", "dogs"))
    test = save(tmp_path / "others", 8, (28, 28), ("dogs",))
    words = ["train", "digit-cnn", "--data", str(data), "--steps", "2", *TINY]
    assert main([*words, "--test-data", str(test), "--output", str(tmp_path / "a")]) == 0
    (found,) = (m for m in load_card(tmp_path / "a").measurements if m.name == "accuracy")
    assert (found.data, found.split, found.samples) == ("others", "test", 8)
    # All of them are dogs, class 1 of the network and class 0 of their folder.
    network = load_checkpoint(tmp_path / "a")
    x = torch.stack(
        [torch.from_numpy(np.array(Image.open(p))) for p in sorted(test.rglob("*.png"))]
    )
    logits = network(x[:, None].float() / 127.5 - 1)
    assert found.value == float((logits.argmax(dim=1) == 1).double().mean())
    strange = save(tmp_path / "strange", 8, (28, 28), ("birds", "cats"))
    words = [*words, "--test-data", str(strange), "--output", str(tmp_path / "b")]
    fails(capsys, words, cli.WRONG_USAGE, "'strange' has the class 'birds'", "'cats', 'dogs'")
    words = ["evaluate", "digit-cnn", "--data", str(strange)]
    fails(capsys, words, cli.WRONG_USAGE, "has the class 'birds'", "'0', '1'")


def test_a_classifier_of_one_class(tmp_path, capsys):
    data = save(tmp_path / "mine", 12, (28, 28))
    words = ["train", "digit-cnn", "--data", str(data), "--output", str(tmp_path / "out"), *TINY]
    fails(capsys, words, cli.WRONG_USAGE, "at least two classes", "only 'mine'")


def test_pictures_of_several_sizes(tmp_path, capsys):
    data = save(tmp_path / "mine", 6, (28, 28))
    save(data / "more", 1, (20, 30))
    (data / "more" / "000.png").rename(data / "big.png")
    words = ["train", "vae", "--data", str(data), "--output", str(tmp_path / "out")]
    fails(capsys, words, cli.WRONG_USAGE, "2 sizes", "--image-size")


@pytest.mark.filterwarnings("default")
def test_bad_pictures_can_be_skipped(tmp_path, capsys):
    data = save(tmp_path / "mine", 12, (28, 28), ("a", "b"))
    (data / "a" / "bad.png").write_bytes(b"no picture")
    words = ["train", "digit-cnn", "--data", str(data), "--steps", "1", *TINY]
    words += ["--output", str(tmp_path / "out")]
    fails(capsys, words, cli.FAILED, "bad.png")
    assert main([*words, "--skip-bad-images"]) == 0
    assert "bad.png" in capsys.readouterr().err
    assert load_card(tmp_path / "out").data["images"] == 12


def test_too_few_pictures_are_found_out_before_the_first_step(tmp_path, capsys):
    data = save(tmp_path / "mine", 10, (28, 28))
    words = ["train", "autoencoder", "--data", str(data), "--steps", "2", "--batch-size", "8"]
    words += ["--width", "4", "--output", str(tmp_path / "out")]
    fails(capsys, words, cli.WRONG_USAGE, "parts is 10", "only 10", "--parts 2")
    assert not (tmp_path / "out").exists()
    assert main([*words, "--parts", "2", "--samples", "10"]) == 0
    assert load_card(tmp_path / "out").measurements


def test_numbers_of_seen_images_say_so(trained, capsys):
    assert main(["evaluate", str(trained)]) == 0
    said = capsys.readouterr()
    assert "pictures/train: accuracy" in said.out
    assert "measured on the training images" in said.err


def test_data_that_are_asked_for_must_be_there(capsys, offline):
    capsys.readouterr()
    assert main(["evaluate", "digit-cnn", "--data", "mnist"]) == cli.FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert "could not be downloaded" in said.err


# --- A run's folder, a beginning elsewhere, a longer run ----------------------------------------------------------


def test_the_folder_of_a_run_is_a_checkpoint(trained, vae, tmp_path, capsys):
    assert main(["evaluate", str(trained)]) == 0
    out = tmp_path / "a.npy"
    assert main(["sample", str(vae.parent), "--n", "3", "--out", str(out)]) == 0
    assert len(np.load(out)) == 3
    network = load_checkpoint(vae.parent)
    expected = network.sample(3, seed=0).clamp(-1, 1)
    assert abs((np.load(out) / 127.5 - 1) - expected.numpy()).max() < 0.005


def test_begun_from_a_checkpoint(vae, tmp_path):
    words = ["train", "vae", *VAE, "--steps", "1", "--batch-size", "8", "--samples", "10"]
    words += ["--learning-rate", "1e-12", "--ema", "none", "--init-from", str(vae)]
    assert main([*words, "--output", str(tmp_path)]) == 0
    card, parent = load_card(tmp_path), load_card(vae)
    assert card.parents == {"initial weights": {"name": "vae", "sha256": parent.sha256}}
    a, b = load_checkpoint(tmp_path).state_dict(), load_checkpoint(vae).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.filterwarnings("default")
def test_a_run_made_longer(pictures, tmp_path, capsys):
    words = ["train", "digit-cnn", "--data", str(pictures), *TINY, "--output", str(tmp_path / "a")]
    assert main([*words, "--steps", "3"]) == 0
    assert main([*words, "--steps", "5", "--resume"]) == 0
    assert load_card(tmp_path / "a").steps == 5


def test_resuming_where_there_is_nothing(pictures, tmp_path, capsys):
    words = ["train", "digit-cnn", "--data", str(pictures), "--output", str(tmp_path / "none")]
    fails(capsys, [*words, *TINY, "--steps", "2", "--resume"], cli.FAILED, "no run to resume")


# --- Outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_pictures_of_every_kind(ending, vae, tmp_path):
    out = tmp_path / f"grid{ending}"
    assert main(["sample", str(vae), "--n", "4", "--columns", "2", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        picture.load()
    assert picture.size == (58, 58)
    assert picture.format in {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(ending, "PNG")


def test_nothing_is_written_over(vae, tmp_path, capsys):
    out = tmp_path / "grid.png"
    out.write_text("precious")
    words = ["sample", str(vae), "--n", "1", "--out", str(out)]
    fails(capsys, words, cli.WRONG_USAGE, "grid.png' is there already", "--overwrite")
    assert out.read_text() == "precious"
    assert main([*words, "--overwrite"]) == 0
    with Image.open(out) as picture:
        assert picture.size == (28, 28)


def test_the_version(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"companion {version('companion')}\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def wrong(arguments):
        raise KeyError("a mistake")

    monkeypatch.setattr("companion.cli.listing.run", wrong)
    with pytest.raises(KeyError):
        main(["list"])


def test_a_card_without_a_recipe(vae, tmp_path, capsys):
    from companion.checkpoints import save_card

    card = replace(load_card(vae), recipe={})
    (tmp_path / "vae.safetensors").write_bytes(vae.read_bytes())
    save_card(card, tmp_path)
    words = ["evaluate", str(tmp_path / "vae.safetensors")]
    fails(capsys, words, cli.WRONG_USAGE, "the card of 'vae' names no recipe")


# --- Comparing ----------------------------------------------------------------------------------------------------


def compared(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main(["compare", *words, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_compare_data_with_a_checkpoint(vae, capsys, tmp_path):
    found = compared(capsys, "digits/test", str(vae), "--n", "60")
    assert found["features"] == "digit-cnn"
    assert (found["real"]["images"], found["fake"]["images"]) == (60, 60)
    numbers = {m["name"]: m for m in found["measurements"]}
    assert {"FID", "KID", "precision", "recall", "Inception Score"} <= set(numbers)
    assert all(m["spread"] is not None for m in found["measurements"])
    images = tmp_path / "fake.npy"
    assert main(["sample", str(vae), "--n", "60", "--out", str(images)]) == 0
    folder = tmp_path / "fakes"
    folder.mkdir()
    for i, image in enumerate(np.load(images)):
        Image.fromarray(image[0]).save(folder / f"{i:03}.png")
    again = compared(capsys, "digits/test", str(folder), "--n", "60")
    fids = [
        next(m["value"] for m in c["measurements"] if m["name"] == "FID") for c in (found, again)
    ]
    assert fids[1] == pytest.approx(fids[0], rel=0.02)


def test_compare_equal_sets(capsys):
    found = compared(capsys, "digits/test", "digits/test", "--n", "200")
    numbers = {m["name"]: m["value"] for m in found["measurements"]}
    assert numbers["FID"] == pytest.approx(0, abs=1e-3)
    assert numbers["precision"] == numbers["recall"] == 1


def test_compare_by_features_of_one_s_own(tmp_path, capsys, monkeypatch):
    a, b = save(tmp_path / "a", 30, (16, 16, 3)), save(tmp_path / "b", 40, (16, 16, 3))
    words = ["compare", str(a), str(b)]
    fails(capsys, words, cli.WRONG_USAGE, "choose features: digit-cnn", "module:function")
    (tmp_path / "of_mine.py").write_text("def corner(x):\n    return x[:, :, 0, 0]\n")
    monkeypatch.chdir(tmp_path)
    found = compared(capsys, str(a), str(b), "--features", "of_mine:corner")
    assert found["features"] == "of_mine:corner"
    assert (found["real"]["images"], found["fake"]["images"]) == (30, 40)
    assert "Inception Score" not in {m["name"] for m in found["measurements"]}


def test_compare_images_of_two_shapes(tmp_path, capsys):
    a = save(tmp_path / "a", 12, (16, 16, 3))
    words = ["compare", "digits/test", str(a), "--n", "12"]
    parts = ["3×16×16", "1×28×28", "--image-size 28 --channels 1"]
    fails(capsys, words, cli.WRONG_USAGE, *parts)
    assert main([*words, "--image-size", "28", "--channels", "1"]) == 0


# --- Measured after it is written ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (RuntimeError("it broke"), 1, "measuring it failed: it broke"),
        (KeyboardInterrupt(), 130, "measuring it was stopped"),
    ],
)
def test_a_checkpoint_stays_when_measuring_it_fails(
    problem, code, said, pictures, tmp_path, capsys, monkeypatch
):
    def broken(*_):
        raise problem

    monkeypatch.setattr(recipes.DigitCNNRecipe, "evaluate", broken)
    words = ["train", "digit-cnn", "--data", str(pictures), "--steps", "2", *TINY]
    path = tmp_path / "out" / "digit-cnn.safetensors"
    message = fails(capsys, [*words, "--output", str(tmp_path / "out")], code, said, "is complete")
    assert message.endswith(f"companion evaluate {path}")
    assert {m.name for m in load_card(path).measurements} == {"training loss"}
    monkeypatch.undo()
    assert main(["evaluate", str(path)]) == 0
