"""A run in a folder: its log, sheets and bar, its clean ends, and what it refuses."""

import csv
import os
import signal
import sys
import threading
import time

import pytest
import torch
from PIL import Image
from torch import nn

from companion.training import (
    DivergedError,
    RunError,
    StateError,
    Trainer,
    TrainingSettings,
    load_state,
    run,
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
    from companion.randomness import derive

    expected = sheet(training.ema.network.sample(9, derive(0, "sheet")).detach())
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


def test_resuming_where_there_is_nothing_begins(worker, folder):
    assert run(worker.trainer("denoiser", steps=2), folder, resume=True, **QUIET).step == 2


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
    with pytest.raises(
        RunError, match=r"steps: 2 → 3\)\. Warm-up and decay are shares of all steps"
    ):
        run(worker.trainer("denoiser", steps=3), folder, resume=True, **QUIET)


def test_other_data_are_named(worker, folder):
    run(worker.trainer("denoiser", steps=2), folder, **QUIET)
    training = worker.trainer("denoiser", steps=2)
    training.data = tuple(t[:50] for t in training.data)
    with pytest.raises(RunError, match=r"data's tensors: .*96, 1, 8, 8.* → .*50, 1, 8, 8"):
        run(training, folder, resume=True, **QUIET)


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
