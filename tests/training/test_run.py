"""A run in a folder: its log, sheets and bar, its clean ends, and what it refuses."""

import csv
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from torch import nn

from companion.files import locked
from companion.randomness import PerImage
from companion.training import (
    DivergedError,
    RunError,
    StateError,
    Trainer,
    TrainingSettings,
    learning_rate_factor,
    load_state,
    run,
    save_state,
    single_objective,
)
from companion.training.log import Averages, Log
from companion.training.run import sheet
from companion.training.state import saved_steps, state_path


def rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


QUIET = {"progress": False}

# ---------------------------------------------------------------- what is in the folder


def test_the_files_of_a_run(worker, folder):
    outcome = run(
        worker.trainer("denoiser", steps=10),
        folder,
        save_every=4,
        log_every=4,
        sheet_every=8,
        **QUIET,
    )
    assert (outcome.step, outcome.total, outcome.interrupted, outcome.signal) == (10, 10, False, 0)
    assert (outcome.complete, outcome.folder, outcome.plans) == (True, folder, ((0, 10),))
    assert sorted(path.name for path in folder.iterdir()) == [
        "log.csv",
        "sheet-00000008.png",
        "sheet-00000010.png",
        "step-00000008.json",
        "step-00000008.safetensors",
        "step-00000010.json",
        "step-00000010.safetensors",
    ]


def test_the_log_holds_means_since_the_row_before(worker, folder):
    training = worker.trainer("denoiser", steps=10)
    losses, rates = [], []
    for event in worker.trainer("denoiser", steps=10):
        losses.append(event.loss)
        rates.append(event.learning_rate)
    outcome = run(training, folder, log_every=4, **QUIET)
    found = rows(folder)
    assert [int(row["step"]) for row in found] == [4, 8, 10]
    means = [sum(losses[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 10))]
    assert [float(row["loss"]) for row in found] == pytest.approx(means, rel=1e-6)
    assert [float(row["learning_rate"]) for row in found] == [rates[i] for i in (3, 7, 9)]
    assert outcome.losses == {"loss": float(found[-1]["loss"])}
    times = [float(row["seconds"]) for row in found]
    assert times == sorted(times)
    assert times[-1] <= outcome.seconds
    assert all(float(row["samples_per_second"]) > 0 for row in found)


def test_every_term_of_every_phase_has_a_column(worker, folder):
    run(worker.trainer("everything", steps=3), folder, log_every=1, **QUIET)
    found = rows(folder)
    assert list(found[0])[4:] == ["critic/loss", "critic/fake", "generator/loss"]
    # The generator takes every second turn: where it took none, its place is empty.
    assert [row["generator/loss"] != "" for row in found] == [True, False, True]


def test_a_term_that_appears_later_gets_a_column(tmp_path):
    log = Log(tmp_path / "log.csv", 0)
    log.append({"step": 1, "seconds": 0.1, "samples_per_second": 1, "learning_rate": 1, "loss": 2})
    log.append({"step": 2, "seconds": 0.2, "samples_per_second": 1, "learning_rate": 1, "new": 3})
    assert [(row["loss"], row["new"]) for row in rows(tmp_path)] == [("2", ""), ("", "3")]
    assert log.losses() == {"new": 3.0}


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "log.csv"
    text = "step,seconds,samples_per_second,learning_rate,loss\n10,1,1,1,5\n20,2,1,1,6\n3"
    path.write_text(text)
    assert [row["step"] for row in Log(path, 20).rows] == ["10", "20"]
    path.write_text(text)
    assert [row["step"] for row in Log(path, 10).rows] == ["10"]
    assert path.read_text().splitlines()[1:] == ["10,1,1,1,5"]


def test_averages_go_on_from_their_state(worker):
    training = worker.trainer("denoiser")
    ours, theirs = Averages(), Averages()
    for value in (1.0, 2.0):
        ours.add({"loss": torch.tensor(value)})
    theirs.restore(ours.state(training), torch.device("cpu"))
    for averages in (ours, theirs):
        averages.add({"loss": torch.tensor(6.0), "other": torch.tensor(5.0)})
        assert averages.take(training) == {"loss": 3.0, "other": 5.0}
        assert averages.take(training) == {}


def test_a_sheet_shows_images_in_rows(tmp_path):
    images = torch.stack([torch.full((1, 4, 6), value) for value in (-1.0, 0.0, 1.0)])
    picture = sheet(images)
    assert picture.shape == (1, 2 + 2 * 6, 2 + 2 * 8)
    assert picture[0, 2, 2] == 0
    assert picture[0, 2, 2 + 8] == 128
    assert picture[0, 2 + 6, 2] == 255
    assert (picture[0, :, :2] == 255).all()
    assert (picture[0, 8:, 10:] == 255).all(), "no fourth image: white"


def test_a_sheet_survives_what_an_untrained_network_draws():
    wild = torch.tensor([float("nan"), 1e30, -1e30, float("inf")]).view(1, 1, 2, 2)
    assert sheet(wild)[0, 2:4, 2:4].tolist() == [[128, 255], [0, 255]]


def test_sheets_are_of_the_average_of_the_weights_and_change_nothing(worker, folder):
    training = worker.trainer("denoiser", steps=4, ema=0.5)
    run(training, folder, sheet_every=2, sheet_images=9, **QUIET)
    with Image.open(folder / "sheet-00000004.png") as picture:
        assert picture.size == (2 + 3 * 10, 2 + 3 * 10)
        drawn = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(32, 32)
    expected = sheet(training.ema.network.sample(9, PerImage(0, 0, 9, "sheet")).detach())
    assert torch.equal(drawn, expected[0])
    plain = worker.trainer("denoiser", steps=4, ema=0.5)
    list(plain)
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.network.parameters(), training.network.parameters(), strict=True)
    )


def test_colour_sheets(folder):
    network = nn.Linear(1, 1)
    objective = single_objective(
        network,
        lambda batch, source: {"loss": network(batch[0]).square().mean()},
        lambda network, n, source: torch.zeros(n, 3, 4, 4),
    )
    training = Trainer(objective, (torch.ones(4, 1),), TrainingSettings(steps=1, batch_size=4))
    run(training, folder, sheet_every=1, sheet_images=1, **QUIET)
    with Image.open(folder / "sheet-00000001.png") as picture:
        assert (picture.mode, picture.getpixel((3, 3))) == ("RGB", (128, 128, 128))


def test_the_bar_shows_rate_loss_and_time_left(worker, folder, capsys):
    run(worker.trainer("denoiser", steps=5), folder)
    shown = capsys.readouterr().err
    assert "run:" in shown
    assert "5/5" in shown
    assert "samples/s, loss 0." in shown


def test_tensorboard(worker, folder):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(
        worker.trainer("denoiser", steps=4),
        folder,
        log_every=2,
        sheet_every=4,
        tensorboard=True,
        **QUIET,
    )
    events = loader.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4]
    assert events.Scalars("loss")[1].value == pytest.approx(float(rows(folder)[1]["loss"]))
    assert events.Images("sheet")[0].step == 4


def test_tensorboard_that_is_not_installed(worker, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match=r"TensorBoard is not installed.*pip install tensorboard"):
        run(worker.trainer("denoiser"), folder, tensorboard=True, **QUIET)


# ---------------------------------------------------------------- resuming


def test_a_folder_in_use_is_not_written_over(worker, folder):
    run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunError, match=r"holds a run already\. Resume it"):
        run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_resuming_where_there_is_nothing_is_a_mistake(worker, folder):
    """A slip in the folder's name must not begin a training of hours anew."""
    with pytest.raises(RunError, match=r"no run to resume in .* Leave --resume out to begin"):
        run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(
        RunError, match=r"no state has been saved in .* leave --resume out to begin"
    ):
        run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)
    assert not list(folder.iterdir())


def test_a_log_without_a_state_is_not_written_over(worker, folder):
    folder.mkdir()
    (folder / "log.csv").write_text(
        "step,seconds,samples_per_second,learning_rate,loss\n1,1,1,1,1\n"
    )
    for resume, message in (
        (True, "remove its log.csv to begin"),
        (False, "saved no state. Remove"),
    ):
        with pytest.raises(RunError, match=message):
            run(worker.trainer("denoiser", steps=2), folder, resume=resume, **QUIET)
        assert [path.name for path in folder.iterdir()] == ["log.csv"]
    run(worker.trainer("denoiser", steps=2), folder, restarted=True, **QUIET)
    assert [row["step"] for row in rows(folder)] == ["2"]


def test_a_process_that_replaces_a_dead_one_goes_on_or_begins(worker, folder):
    """torchrun gives it the command of the first start."""
    assert run(worker.trainer("denoiser", steps=2), folder, restarted=True, **QUIET).step == 2
    again = run(worker.trainer("denoiser", steps=2), folder, restarted=True, **QUIET)
    assert again.plans == ((0, 2),)


def test_resuming_a_finished_run_only_says_how_it_ended(worker, folder):
    first = run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)
    assert (again.step, again.losses) == (first.step, first.losses)
    assert again.seconds >= float(rows(folder)[-1]["seconds"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_settings_are_named(worker, folder):
    run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    with pytest.raises(
        RunError, match=r"other settings \(learning_rate: 0.001 → 0.002; seed: 0 → 3\)"
    ):
        run(
            worker.trainer("denoiser", steps=2, learning_rate=2e-3, seed=3),
            folder,
            resume=True,
            **QUIET,
        )
    with pytest.raises(RunError, match=r"seed: 0 → 3; steps: 2 → 3"):
        run(worker.trainer("denoiser", steps=3, seed=3), folder, resume=True, **QUIET)


def test_settings_of_a_nested_network_are_named_by_themselves(worker, folder):
    @dataclass(frozen=True)
    class Config:
        width: int = 4

    @dataclass(frozen=True, kw_only=True)
    class Settings(TrainingSettings):
        network: Config = Config()

    def training(width):
        objective = worker.denoiser()
        settings = Settings(steps=2, batch_size=16, network=Config(width))
        return Trainer(objective, worker.dataset(), settings)

    run(training(4), folder, **QUIET)
    with pytest.raises(RunError, match=r"other settings \(width: 4 → 5\)"):
        run(training(5), folder, resume=True, **QUIET)


def test_other_data_are_named(worker, folder):
    run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    training = worker.trainer("denoiser", steps=2)
    training.data = training.data[:50]
    with pytest.raises(RunError, match=r"data's SHA-256: .*; data's images: 96 → 50"):
        run(training, folder, resume=True, **QUIET)


def test_other_tensors_are_named(folder):
    def training(count):
        network = nn.Linear(1, 1)
        objective = single_objective(network, lambda b, s: {"loss": network(b[0]).square().mean()})
        return Trainer(objective, (torch.ones(count, 1),), TrainingSettings(steps=1, batch_size=4))

    run(training(4), folder, **QUIET)
    with pytest.raises(RunError, match=r"data's tensors: .*4, 1.* → .*5, 1"):
        run(training(5), folder, resume=True, **QUIET)


def test_auto_is_what_it_means_here(worker, folder, monkeypatch):
    """float32 on a CPU, by either name; what means bfloat16 elsewhere is another run, and the message says why."""
    run(worker.trainer("denoiser", steps=2, precision="auto"), folder, **QUIET)
    run(worker.trainer("denoiser", steps=2, precision="32-true"), folder, resume=True, **QUIET)
    elsewhere = worker.trainer("denoiser", steps=2, precision="auto")
    elsewhere.precision = "bf16-mixed"  # as on CUDA
    with pytest.raises(
        RunError, match=r"precision: '32-true' → 'bf16-mixed'\)\. Precision 'auto' is .*--precision"
    ):
        run(elsewhere, folder, resume=True, **QUIET)


def test_another_kind_of_device_is_said(worker, folder):
    run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    state = load_state(state_path(folder, 2))
    save_state(folder, 2, state | {"device": "cuda"})
    with pytest.warns(UserWarning, match="begun on 'cuda' and goes on on 'cpu', which draws other"):
        run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)


def test_initial_weights_are_part_of_a_run(worker, folder):
    start = worker.trainer("denoiser", seed=1).network.state_dict()
    begun = worker.trainer("denoiser", steps=2, start=start)
    run(begun, folder, **QUIET)
    with pytest.raises(RunError, match=r"initial weights' SHA-256: '.{64}' → None"):
        run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)
    again = worker.trainer("denoiser", steps=2, start=start)
    assert run(again, folder, resume=True, **QUIET).step == 2


# ---------------------------------------------------------------- longer runs


def test_a_run_made_longer_follows_the_new_plan_and_says_so(worker, folder):
    run(worker.trainer("denoiser", steps=4), folder, log_every=1, **QUIET)
    longer = worker.trainer("denoiser", steps=8)
    with pytest.warns(
        UserWarning, match=r"planned for 4 steps, and goes on after 4 to 8\. From here"
    ):
        outcome = run(longer, folder, resume=True, log_every=1, **QUIET)
    assert (outcome.step, outcome.total, outcome.complete) == (8, 8, True)
    assert outcome.plans == ((0, 4), (4, 8))
    rates = [float(row["learning_rate"]) for row in rows(folder)]
    plans = [TrainingSettings(steps=steps, batch_size=16) for steps in (4, 8)]
    factors = [learning_rate_factor(step, plans[step >= 4]) for step in range(8)]
    assert rates == pytest.approx([1e-3 * factor for factor in factors])
    # Once is enough.
    run(worker.trainer("denoiser", steps=8), folder, resume=True, **QUIET)


def test_a_constant_rate_makes_a_longer_run_the_same(worker, folder, tmp_path, result):
    """The very bits of the run that was planned so, and no warning."""
    constant = {"decay": "constant", "warmup": 0.0}
    options = {"log_every": 1, "save_every": 2}
    run(worker.trainer("everything", steps=4, **constant), folder, **options, **QUIET)
    run(worker.trainer("everything", steps=8, **constant), folder, resume=True, **options, **QUIET)
    whole = tmp_path / "whole"
    run(worker.trainer("everything", steps=8, **constant), whole, **options, **QUIET)
    assert result(folder) == result(whole)


def test_a_run_cannot_be_shorter_than_it_is(worker, folder):
    options = {"decay": "constant", "warmup": 0.0}
    run(sending(worker.trainer("denoiser", steps=9, **options), 4, signal.SIGTERM), folder, **QUIET)
    with pytest.raises(RunError, match="has done 5 steps already, more than the 4 asked for"):
        run(worker.trainer("denoiser", steps=4, **options), folder, resume=True, **QUIET)
    outcome = run(worker.trainer("denoiser", steps=6, **options), folder, resume=True, **QUIET)
    assert (outcome.step, outcome.plans) == (6, ((0, 9), (5, 6)))


# ---------------------------------------------------------------- one process at a time


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"restarted": True}])
def test_a_folder_in_which_another_process_trains_is_not_touched(worker, folder, server, how):
    """Another process in earnest: the lock is the system's."""
    server.start(
        folder, objective="denoiser", settings={"steps": 10**6, "decay": "constant"}, save_every=50
    )
    number = server.number()
    try:
        while not saved_steps(folder):
            time.sleep(0.01)
        os.kill(number, signal.SIGSTOP)
        before = contents(folder)
        with pytest.raises(RunError, match=rf"another process trains in .*run'.*process {number}"):
            run(worker.trainer("denoiser", steps=2), folder, **how, **QUIET)
        assert contents(folder) == before
    finally:
        os.kill(number, signal.SIGKILL)
        server.wait()
    # The dead hold no lock.
    settings = {"steps": saved_steps(folder)[0], "decay": "constant"}
    with pytest.warns(UserWarning, match="was planned for 1,000,000 steps"):
        run(worker.trainer("denoiser", **settings), folder, resume=True, **QUIET)
    assert not (folder / ".lock").exists()


def test_a_lock_that_is_held_before_the_first_state(worker, folder):
    folder.mkdir()
    with (
        locked(folder / ".lock", message="ours"),
        pytest.raises(RunError, match="another process trains in"),
    ):
        run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    assert run(worker.trainer("denoiser", steps=2), folder, **QUIET).complete


# ---------------------------------------------------------------- damage


def test_what_a_killed_process_left_half_written_goes(worker, folder):
    """Of states, log, sheets and of the checkpoint that is written into the folder at the end."""
    run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    left = [
        f".{name}.{'0123456789abcdef'}.tmp"
        for name in (
            "vae.safetensors",
            "vae.json",
            "log.csv",
            "sheet-00000001.png",
            "step-00000002.json",
        )
    ]
    mine = [".notes.json", ".vae.safetensors.tmp", ".gitignore", "vae.json.0123456789abcdef.tmp"]
    for name in left + mine:
        (folder / name).touch()
    (folder / ".vae.png.0123456789abcdee.tmp").mkdir()  # no file, whatever its name
    run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)
    names = {path.name for path in folder.iterdir()}
    assert not names & set(left)
    assert names >= {*mine, ".vae.png.0123456789abcdee.tmp"}


LOG_DAMAGE = {
    "a changed number": lambda text: text.replace("\n2,", "\n2,7", 1),
    "a row less": lambda text: "".join(text.splitlines(keepends=True)[:2]),
    "another first line": lambda text: text.replace("learning_rate", "rate"),
    "two columns of one name": lambda text: text.replace("seconds,", "step,", 1),
    "a field of a million characters": lambda text: text.replace("\n2,", "\n" + "2" * 10**6 + ","),
    "a long first line": lambda text: "x" * 10**6 + text,
    "nothing": lambda text: "",
    "no text": lambda text: "\udcff" + text,
    "NUL": lambda text: text.replace("1", "\0"),
    "an open quote": lambda text: text.replace("\n", '\n"', 1),
}


@pytest.mark.parametrize("how", LOG_DAMAGE)
def test_a_damaged_log_is_named_and_can_be_done_without(worker, folder, how):
    run(worker.trainer("denoiser", steps=3), folder, log_every=1, save_every=3, **QUIET)
    path = folder / "log.csv"
    damaged = LOG_DAMAGE[how](path.read_text()).encode(errors="surrogateescape")
    path.write_bytes(damaged)
    with pytest.raises(RunError, match=r"the log '.*log\.csv' is damaged: .* remove it to go on"):
        run(worker.trainer("denoiser", steps=3), folder, resume=True, **QUIET)
    assert path.read_bytes() == damaged
    path.unlink()
    with pytest.warns(UserWarning, match=r"log\.csv' is not there; the log begins anew"):
        run(worker.trainer("denoiser", steps=3), folder, resume=True, **QUIET)


def test_a_state_of_something_else_is_named(worker, folder):
    """Whole, but not what a run saves, or of another network under the same settings."""
    run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    state = load_state(state_path(folder, 2))
    for odd in (
        {name: value for name, value in state.items() if name != "fingerprint"},
        state | {"seconds": -1.0},
        state | {"averages": {"sums": {"loss": 1.0}, "counts": {}}},
        state | {"plans": []},
        state | {"fingerprint": state["fingerprint"] | {"seed": torch.zeros(2)}},
        state | {"training": state["training"] | {"step": torch.zeros(2)}},
        state | {"training": state["training"] | {"step": 1}},
    ):
        save_state(folder, 2, odd)
        with pytest.raises(
            StateError, match=r"'step-00000002\.safetensors' holds no state of a run"
        ):
            run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)
    network = {name: t[:1] for name, t in state["training"]["network"].items()}
    save_state(folder, 2, state | {"training": state["training"] | {"network": network}})
    with pytest.raises(StateError, match=r"cannot go on from '.*step-00000002.*of another network"):
        run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)


def test_a_damaged_state_is_named_and_the_run_ends_all_the_same(worker, folder, tmp_path, result):
    options = {"save_every": 4, "log_every": 1}
    run(worker.trainer("everything", steps=10), folder, **options, **QUIET)
    expected = result(folder)
    broken = tmp_path / "broken"
    run(worker.trainer("everything", steps=10), broken, **options, **QUIET)
    state_path(broken, 10).write_bytes(b"nothing")
    with pytest.warns(
        UserWarning, match=r"step-00000010.safetensors' is truncated .* from 'step-00000008"
    ):
        run(worker.trainer("everything", steps=10), broken, resume=True, **options, **QUIET)
    assert result(broken) == expected


def test_no_valid_state(worker, folder):
    run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    state_path(folder, 2).unlink()
    with pytest.raises(StateError, match=r"'step-00000002.safetensors' is missing"):
        run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET)


# ---------------------------------------------------------------- divergence


def diverging(at: int, how: str) -> Trainer:
    """Training whose loss, or gradient, is not finite at a step, counted from 1."""
    network = nn.Linear(1, 1)
    steps = 0

    def loss(batch, source):
        nonlocal steps
        steps += 1
        value = network(batch[0]).square().mean()
        if steps == at:
            if how == "gradient":  # of a square root at zero: finite loss, infinite gradient
                value = value + (network.weight - network.weight.detach()).abs().sqrt().sum()
            else:
                value = value * float(how)
        return {"loss": value}

    settings = TrainingSettings(steps=20, batch_size=4)
    return Trainer(single_objective(network, loss), (torch.ones(8, 1),), settings)


@pytest.mark.parametrize("how", ["nan", "inf"])
def test_a_loss_that_is_not_finite(folder, how):
    with pytest.raises(
        DivergedError, match=r"loss is not finite at step 8\. Try a lower"
    ) as caught:
        run(diverging(8, how), folder, save_every=5, **QUIET)
    assert caught.value.step == 8
    assert f"last good state is 'step-00000005.safetensors' in {str(folder)!r}" in str(caught.value)
    assert saved_steps(folder) == [5]


def test_divergence_before_anything_was_saved(folder):
    with pytest.raises(DivergedError, match="No state had been saved"):
        run(diverging(3, "nan"), folder, save_every=5, **QUIET)


def test_weights_that_are_not_finite_are_never_saved(folder):
    """The gradient overflows at step 10 where the loss is finite; the state of step 10 would be a bad one."""
    with pytest.raises(
        DivergedError, match="norm of the weights is not finite at step 10"
    ) as caught:
        run(diverging(10, "gradient"), folder, save_every=5, **QUIET)
    assert caught.value.step == 10
    assert "step-00000005.safetensors" in str(caught.value)
    assert saved_steps(folder) == [5]


# ---------------------------------------------------------------- signals


def sending(training: Trainer, step: int, *numbers: int, pause: float = 0.0) -> Trainer:
    """Makes a training send itself signals in the middle of a step."""
    advance = training.advance

    def signalling():
        if training.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(pause)
        return advance()

    training.advance = signalling
    return training


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_finish_the_step_and_save(worker, folder, tmp_path, result, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    options = {"log_every": 1}
    training = sending(worker.trainer("everything", steps=9), 4, number)
    outcome = run(training, folder, **options, **QUIET)
    assert (outcome.step, outcome.interrupted, outcome.signal) == (5, True, number)
    assert not outcome.complete
    assert saved_steps(folder) == [5]
    assert not training.objective.network.training
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    run(worker.trainer("everything", steps=9), folder, resume=True, **options, **QUIET)
    run(worker.trainer("everything", steps=9), tmp_path / "reference", **options, **QUIET)
    assert result(folder) == result(tmp_path / "reference")


def test_a_signal_in_the_last_step_interrupts_nothing(worker, folder):
    outcome = run(sending(worker.trainer("denoiser", steps=3), 2, signal.SIGTERM), folder, **QUIET)
    assert (outcome.step, outcome.interrupted) == (3, False)


def test_a_second_ctrl_c_stops_at_once(worker, folder):
    numbers = (signal.SIGINT, signal.SIGINT)
    training = sending(worker.trainer("denoiser", steps=9), 4, *numbers, pause=1.05)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(training, folder, save_every=2, **QUIET)
    assert saved_steps(folder) == [4, 2]
    assert signal.getsignal(signal.SIGINT) is handler


def test_one_ctrl_c_that_arrives_twice_is_one(worker, folder):
    """From the terminal and, a moment later, from torchrun."""
    numbers = (signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    outcome = run(sending(worker.trainer("denoiser", steps=9), 4, *numbers), folder, **QUIET)
    assert (outcome.step, outcome.signal) == (5, signal.SIGINT)


def test_a_run_in_another_thread_leaves_signals_alone(worker, folder):
    seen = []

    def work():
        run(worker.trainer("denoiser", steps=2), folder, **QUIET)
        seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
    assert saved_steps(folder) == [2]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", ["save_every", "log_every", "sheet_images"])
def test_numbers_must_be_positive(worker, folder, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        run(worker.trainer("denoiser"), folder, **{name: 0}, **QUIET)
    assert not folder.exists()


def test_seconds_add_up_over_resumes(worker, folder):
    first = run(sending(worker.trainer("denoiser", steps=4), 1, signal.SIGTERM), folder, **QUIET)
    path = state_path(folder, 2)
    stored = load_state(path)["seconds"]
    assert 0 < stored <= first.seconds
    again = run(worker.trainer("denoiser", steps=4), folder, resume=True, **QUIET)
    assert again.seconds > stored
