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
from companion.data import load
from companion.training import Trainer

TINY = ["--batch-size", "8", "--width", "4", "--log-every", "2"]
VAE = ["--data", "digits", "--architecture", "mlp", "--width", "1", "--latent", "2", "--iwae", "0"]


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
    for field in [*fields(recipes.RECIPES[name]), *fields(cli.TrainOptions())]:
        assert f"--{field.name.replace('_', '-')}" in said, field.name


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
    "train digit-cnn --ema none": ["--ema", "'none' is neither None nor FLOAT"],
    "train digit-cnn --steps": ["Missing value for argument '--steps'"],
    "train digit-cnn --precision fp16": ["'fp16'", "bf16-mixed"],
    "train digit-cnn --accelerator tpu": ["'tpu'", "auto", "cpu", "cuda"],
    "train digit-cnn now": ["unexpected: now"],
    "train digit-cnn --steps 0": ["steps must be at least 1, got 0"],
    "train digit-cnn --ema 2": ["ema must lie between 0 and 1", "2"],
    "train digit-cnn --devices 0": ["at least one device", "0"],
    "train digit-cnn --data minst": ["unknown data 'minst'", "Did you mean 'mnist'?", "./name"],
    "train digit-cnn --data digits --batch-size 5000": ["batch_size is 5000", "only 4000"],
    "train digit-cnn --data digits --batch-size 9 --accumulate 2": ["multiple of 2"],
    "sample": ["CHECKPOINT is missing"],
    "sample digit-cn": ["unknown checkpoint 'digit-cn'", "Did you mean 'digit-cnn'?"],
    "sample digit-cnn": ["'digit-cnn' (a network of the class DigitCNN) cannot draw images"],
    "sample digit-cnn --n 0": ["--n must be at least 1, got 0"],
    "sample digit-cnn --out grid.gif": ["--out must end in .png or .npy, got 'grid.gif'"],
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
    fails(capsys, [*words, "--steps", "6", "--resume"], cli.FAILED, "steps: 5 → 6")


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

    monkeypatch.setitem(cli.COMMANDS, "list", (big, ""))
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
    assert set(card.metrics) == {"training loss", "pictures/all accuracy"}
    assert (trained / "log.csv").read_text().startswith("step,")
    network = load_checkpoint(trained / "digit-cnn.safetensors")
    assert torch.equal(network.head.weight, network.head.weight.half().float())


def test_its_measures_are_those_of_the_stored_weights(trained, tmp_path):
    out = tmp_path / "numbers.json"
    assert main(["evaluate", str(trained / "digit-cnn.safetensors"), "--json", str(out)]) == 0
    card = load_card(trained / "digit-cnn.safetensors")
    name = "pictures/all accuracy"
    assert json.loads(out.read_text())["metrics"][name] == card.metrics[name]


def test_the_same_command_gives_the_same_weights(trained, pictures, tmp_path, capsys):
    words = ["train", "digit-cnn", "--data", str(pictures), "--steps", "5", *TINY]
    assert main([*words, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "pictures/all accuracy" in said
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

    monkeypatch.setitem(cli.COMMANDS, "list", (stopped, ""))
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
    monkeypatch.setattr(cli, "checkpoint_names", lambda: ("digit-cnn", str(vae)))
    fails(capsys, ["sample", "digit-cnn"], cli.WRONG_USAGE, f"These can: {vae}.")
    monkeypatch.setattr(cli, "checkpoint_names", lambda: ("digit-cnn",))
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
    assert content["metrics"]["generated samples"] == 20
    assert content["metrics"]["FID"] > 0
    shared = {k: v for k, v in card.metrics.items() if not k.startswith("training ")}
    assert content["metrics"] == pytest.approx(shared)
    assert len(said) == 1 + len(content["metrics"])
    assert len({len(line) for line in said[1:]}) == 1  # aligned
    capsys.readouterr()
    assert main([*words[:-1], "-"]) == 0
    assert json.loads(capsys.readouterr().out) == content


def test_evaluation_on_other_data(pictures, trained, vae, capsys):
    words = ["evaluate", str(vae), "--samples", "20", "--data", str(pictures), "--json", "-"]
    assert main(words) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["data"] == str(pictures)
    assert "FID" not in content["metrics"]
    assert any(name.startswith("pictures/all") for name in content["metrics"])


def test_data_of_another_shape(vae, capsys, tmp_path, monkeypatch):
    colours = replace(load("digits", "test")[:20], images=torch.zeros(20, 3, 32, 32).byte())
    monkeypatch.setattr(recipes, "load", lambda *_, **__: colours)
    words = ["evaluate", str(vae), "--data", "cifar10"]
    fails(capsys, words, cli.WRONG_USAGE, "'cifar10' are 3×32×32", "takes 1×28×28")
    words = ["train", "digit-cnn", "--data", "cifar10", "--output", str(tmp_path)]
    fails(capsys, words, cli.WRONG_USAGE, "takes grey images", "3 channels")


def test_a_shipped_checkpoint_is_measured_offline(capsys, offline):
    assert main(["evaluate", "digit-cnn"]) == 0
    captured = capsys.readouterr()
    measured = re.search(r"digits/test accuracy +([\d.]+)", captured.out)[1]
    assert float(measured) == load_card("digit-cnn").metrics["digits/test accuracy"]
    assert "companion fetch mnist" in captured.err


def test_what_is_not_finite_is_said(monkeypatch, trained, pictures, capsys):
    monkeypatch.setattr(
        recipes.DigitCNNRecipe, "evaluate", lambda *_: {"PSNR, dB": float("inf"), "b": 1.5}
    )
    path = str(trained / "digit-cnn.safetensors")
    assert main(["evaluate", path, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"PSNR, dB": None, "b": 1.5}
    assert main(["evaluate", path]) == 0
    assert re.search(r"PSNR, dB +not finite", capsys.readouterr().out)


# --- Listing and fetching -----------------------------------------------------------------------------------------


def test_list_names_everything_with_its_numbers(capsys, offline, tmp_path):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for name in recipes.RECIPES:
        assert re.search(rf"^  {name} +\w+ +[\d,]+ +\d+ +\w", said, re.M)
    card = load_card("digit-cnn")
    assert f"digit-cnn: DigitCNN, {card.parameters:,} parameters, {card.steps:,} steps" in said
    assert re.search(r"digits/test accuracy +0\.99", said)
    assert re.search(r"digits +embedded", said)
    assert re.search(r"mnist +not downloaded", said)
    assert str(tmp_path / "none") in said


def test_a_variant_says_in_what_it_differs(capsys):
    assert main(["list"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("  gan-cifar10 ")]
    assert "As gan, but steps 100000," in line
    assert "data cifar10" in line
    assert "latent 128" in line
    assert "loss" not in line


def test_list_as_json(tmp_path, capsys):
    out = tmp_path / "all.json"
    assert main(["list", "--json", str(out)]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert set(content["recipes"]) == set(recipes.RECIPES)
    assert content["checkpoints"]["digit-cnn"]["metrics"] == load_card("digit-cnn").metrics
    assert content["data sets"]["digits"] == "embedded"


def test_list_knows_what_is_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    folder = tmp_path / "mnist"
    folder.mkdir()
    for split in cli.SOURCES["mnist"].splits.values():
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
    monkeypatch.setattr(cli, "load", small)
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


def test_two_processes_sample_and_evaluate_as_one_does(vae, tmp_path):
    words = [str(vae), "--devices", "2", "--accelerator", "cpu", "--batch-size", "16"]
    result = companion("sample", *words, "--n", "40", "--out", "two.npy", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    one = tmp_path / "one.npy"
    options = ["--n", "40", "--batch-size", "16", "--accelerator", "cpu", "--out", str(one)]
    assert main(["sample", str(vae), *options]) == 0
    assert (np.load(tmp_path / "two.npy") == np.load(one)).all()
    assert result.stdout.count("40 images") == 1

    result = companion("evaluate", *words, "--samples", "40", "--json", "two.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    one = tmp_path / "one.json"
    options = ["--samples", "40", "--batch-size", "16", "--accelerator", "cpu", "--json", str(one)]
    assert main(["evaluate", str(vae), *options]) == 0
    single, double = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert double["metrics"] == pytest.approx(single["metrics"], rel=1e-5)


def test_two_processes_train_one_checkpoint(pictures, tmp_path):
    words = ["train", "vae", *VAE, "--steps", "3", "--batch-size", "8", "--samples", "20"]
    words += ["--precision", "32-true", "--accelerator", "cpu"]
    result = companion(*words, "--devices", "2", "--output", "two", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    one, two = (load_card(tmp_path / n / "vae.safetensors") for n in ("one", "two"))
    assert "2 processes" in two.device
    assert two.metrics["training loss"] == pytest.approx(one.metrics["training loss"], rel=1e-4)
    assert two.metrics["FID"] == pytest.approx(one.metrics["FID"], rel=0.02)
