"""Several processes do what one does; one that dies is started again; SIGTERM reaches all of them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from companion.cli import main
from companion.data import to_float
from companion.training import BatchOrder, gather, launch, load_state
from companion.training.state import saved_steps, state_path

STEPS = 12
OPTIONS = {"objective": "denoiser", "settings": {"steps": STEPS}, "save_every": 4, "log_every": 1}
# Sums over a batch are taken in another order by two processes than by one, and Adam divides small gradients by
# their own size: after 12 steps at a learning rate of 1e-3, weights of order 0.1 differ in the sixth digit.
TOLERANCE = {"rtol": 0, "atol": 2e-6}


# --standalone: torchrun itself chooses a free port, and its processes meet in its store.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def finish(process: subprocess.Popen) -> dict:
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def start(worker, options: dict, *by: str, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *by, worker.__file__, "train", json.dumps(options)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in its background deaf to Ctrl-C, and deafness is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def alone(server, tmp_path_factory):
    """One process with the same global batch, and what it samples and measures."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    measured = folder.with_suffix(".pt")
    code, line = server.train(folder, evaluate=str(measured), **OPTIONS)
    assert code == 0, line
    return folder, torch.load(measured)


def assert_same_training(folder, reference):
    ours, theirs = (
        load_state(state_path(path, saved_steps(path)[0]))["training"]
        for path in (folder, reference)
    )
    assert ours["step"] == theirs["step"] == STEPS
    torch.testing.assert_close(ours["network"], theirs["network"], **TOLERANCE)
    torch.testing.assert_close(ours["ema"]["network"], theirs["ema"]["network"], **TOLERANCE)
    rows = [
        torch.tensor([[float(v) for v in r.split(",")][3:] for r in text.splitlines()[1:]])
        for text in ((path / "log.csv").read_text() for path in (folder, reference))
    ]
    torch.testing.assert_close(*rows, rtol=1e-5, atol=0)


@pytest.mark.system
def test_two_processes_train_sample_and_measure_as_one(worker, alone, tmp_path):
    """Started by the engine itself."""
    reference, expected = alone
    folder, measured = tmp_path / "run", tmp_path / "measured.pt"
    options = OPTIONS | {"folder": str(folder), "devices": 2, "evaluate": str(measured)}
    assert finish(start(worker, options)) == {"step": STEPS, "signal": 0}
    assert_same_training(folder, reference)
    ours = torch.load(measured)
    assert ours["drawn"].shape == (40, 1, 8, 8)
    assert ours["errors"].shape == (96,)
    # The networks differ by rounding, and so do what they draw and their errors.
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", ["gan", "vae-gan"])
def test_two_processes_play_the_same_game_as_one(objective, server, tmp_path):
    """Batch statistics of all processes, spectral norms, the penalty's places and every player's noise included.

    Rounding grows faster in a game than in a descent, and the penalty takes second derivatives of it.
    """
    options = {"objective": objective, "settings": {"steps": 6}, "save_every": 6, "log_every": 1}
    for name, more in (("one", {}), ("two", {"slurm": True})):
        code, line = server.train(tmp_path / name, **options, **more)
        assert code == 0, line
    one, two = (load_state(state_path(tmp_path / name, 6))["training"] for name in ("one", "two"))
    torch.testing.assert_close(two["network"], one["network"], rtol=1e-3, atol=1e-4)
    rows = [
        torch.tensor([[float(v) for v in r.split(",")][3:] for r in text.splitlines()[1:]])
        for text in ((tmp_path / name / "log.csv").read_text() for name in ("two", "one"))
    ]
    torch.testing.assert_close(*rows, rtol=2e-3, atol=1e-4)


def test_what_processes_tell_one_another(server, worker, tmp_path):
    """Gradients that not all of them have, the buffers of rank zero, and rows of all."""
    code, line = server.train(tmp_path, task="ranks", slurm=True)
    assert code == 0, line
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for found in ranks:
        # Means over two: of 1 and 2, of nothing and 6, of nothing and 1.
        gradients = found["gradients"]
        assert gradients["everywhere"].tolist() == [1.5, 1.5]
        assert gradients["somewhere"].tolist() == [3.0, 3.0, 3.0]
        assert gradients["coarse"].tolist() == [0.5]
        assert gradients["nowhere"] is None
        assert found["parameters"]["nowhere"].tolist() == [6.0]
        assert found["gathered"].tolist() == [[[0] * 3] * 2, [[1] * 3] * 2]
        assert found["number"].tolist() == [0, 1]
        # Rank zero's, from the beginning on: its mean was 0, the other's 10.
        assert found["buffers at first"].tolist() == [0.0]
        order = BatchOrder(96, 16, 0)
        shares = [to_float(worker.images()[0][order.indices(step)[:8]]) for step in range(3)]
        mean = 0.0
        for share in shares:
            mean = 0.9 * mean + 0.1 * float(share.mean())
        assert float(found["buffers"]["running_mean"]) == pytest.approx(mean, abs=1e-6)
        assert int(found["buffers"]["num_batches_tracked"]) == 3
    torch.testing.assert_close(ranks[0]["parameters"], ranks[1]["parameters"], rtol=0, atol=0)


@pytest.mark.system
def test_a_worker_that_dies_is_started_again(worker, alone, tmp_path):
    """Under torchrun, and each worker goes through its share of a batch in two parts."""
    folder, flag = tmp_path / "run", tmp_path / "died"
    options = OPTIONS | {
        "folder": str(folder),
        "restarted": True,
        "settings": OPTIONS["settings"] | {"accumulate": 2},
        "die_once": {"flag": str(flag), "step": 9, "rank": 1},
    }
    process = start(worker, options, *TORCHRUN, "--max-restarts=1")
    assert finish(process) == {"step": STEPS, "signal": 0}
    assert flag.exists()
    assert_same_training(folder, alone[0])


@pytest.mark.system
def test_sigterm_stops_all_processes_at_the_same_step(worker, tmp_path):
    folder = tmp_path / "run"
    settings = {"steps": 100_000, "decay": "constant"}
    options = OPTIONS | {"folder": str(folder), "settings": settings, "restarted": True}
    process = start(worker, options, *TORCHRUN)
    while not saved_steps(folder) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to its workers
    output, errors = process.communicate(timeout=200)
    assert json.loads(output.splitlines()[-1]) == {
        "step": saved_steps(folder)[0],
        "signal": signal.SIGTERM,
    }, errors
    state = load_state(state_path(folder, saved_steps(folder)[0]))
    assert state["training"]["step"] == saved_steps(folder)[0]


def test_slurm(server, alone, tmp_path):
    """Two tasks that know of one another by nothing but the variables that srun sets."""
    code, line = server.train(tmp_path / "run", slurm=True, **OPTIONS)
    assert code == 0, line
    assert json.loads(line) == {"step": STEPS, "signal": 0}
    assert_same_training(tmp_path / "run", alone[0])


@pytest.mark.system
def test_commands_with_two_processes_do_what_they_do_with_one(server, tmp_path):
    """Sampling and evaluation; that training does, and that a command starts its processes, is in tests/cli."""
    cpu = ["--accelerator", "cpu"]
    small = ["--architecture", "mlp", "--width", "1", "--latent-dim", "2", "--iwae", "0"]
    short = ["--steps", "3", "--batch-size", "8", "--samples", "20", "--output", str(tmp_path)]
    assert main(["train", "vae", "--data", "digits", *small, *short, *cpu]) == 0
    words = {
        "sample": ["sample", str(tmp_path), "--n", "40", "--out", "{}.npy"],
        "evaluate": ["evaluate", str(tmp_path), "--samples", "40", "--json", "{}.json"],
    }
    for name, command in words.items():
        one, two = (
            [word.format(tmp_path / f"{name}-{n}") for word in command] for n in ("one", "two")
        )
        assert main([*one, *cpu, "--batch-size", "7"]) == 0
        code, line = server.train(
            tmp_path / name,
            task="command",
            slurm=True,
            words=[*two, *cpu, "--batch-size", "16", "--devices", "2"],
        )
        assert (code, line) == (0, json.dumps({"code": 0}))
        first, second = ((tmp_path / f"{name}.{rank}").read_text() for rank in range(2))
        assert first
        assert not second
    images = [np.load(tmp_path / f"sample-{n}.npy").astype(int) for n in ("one", "two")]
    assert images[0].shape == (40, 1, 28, 28)
    assert abs(images[1] - images[0]).max() <= 1  # the batch size changes the rounding
    values = [
        [
            m["value"]
            for m in json.loads((tmp_path / f"evaluate-{n}.json").read_text())["measurements"]
        ]
        for n in ("one", "two")
    ]
    assert len(values[0]) > 3
    assert values[1] == pytest.approx(values[0], rel=1e-3)


# ---------------------------------------------------------------- mistakes


def test_counts_must_be_positive():
    with pytest.raises(ValueError, match="at least one device and one node"):
        launch(devices=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"'cuda' was asked for, but this machine has no CUDA"):
        launch(accelerator="cuda")


def test_nodes_without_a_launcher():
    """The first would wait for ever for processes that nobody starts."""
    with pytest.raises(ValueError, match=r"2 nodes need a launcher .* torchrun --nnodes=2 .* srun"):
        launch(nodes=2)


@pytest.mark.system
def test_ctrl_c_ends_a_launch_that_waits(worker, tmp_path):
    """One of two tasks, whose partner never comes: it waits outside Python."""
    environment = worker.slurm(0, worker.free_port())
    process = start(worker, OPTIONS | {"folder": str(tmp_path / "run")}, **environment)
    try:
        for line in process.stderr:
            if "Initializing distributed" in line:
                break
        time.sleep(1)
        assert process.poll() is None, "it does not wait"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_is_as_before_after_a_launch():
    def handler(number, frame):
        pass

    before = signal.signal(signal.SIGINT, handler)
    try:
        launch(accelerator="cpu")
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_torchrun_and_the_arguments_must_agree(monkeypatch):
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "x"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("WORLD_SIZE", "4"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match="torchrun has started 2 processes on each of 2 nodes, but 3"
    ):
        launch(devices=3)


def test_slurm_and_the_arguments_must_agree(monkeypatch):
    for name, value in (("NTASKS", "2"), ("NTASKS_PER_NODE", "2"), ("NNODES", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match="SLURM has started 2 processes on each of 1 nodes, but 4"):
        launch(devices=4)


@pytest.mark.parametrize(("precision", "mixed"), [("auto", False), ("bf16-mixed", True)])
def test_one_process(precision, mixed, monkeypatch):
    monkeypatch.setattr("companion.devices.computes_bfloat16", lambda: True)
    fabric = launch(accelerator="cpu", precision=precision)
    assert (fabric.world_size, fabric.device) == (1, torch.device("cpu"))
    with fabric.autocast():
        assert torch.is_autocast_enabled("cpu") == mixed
    assert gather(fabric, torch.ones(2)).tolist() == [[1.0, 1.0]]


def test_slow_bfloat16_is_said_once(monkeypatch, worker):
    """By the launch, or by a trainer that makes do without one."""
    monkeypatch.setattr("companion.devices.computes_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="about 10 × slower") as caught:
        fabric = launch(accelerator="cpu", precision="bf16-mixed")
    assert len(caught) == 1
    worker.trainer("denoiser", fabric, precision="bf16-mixed")  # a warning would be an error
    with pytest.warns(UserWarning, match="about 10 × slower") as caught:
        worker.trainer("denoiser", precision="bf16-mixed")
    assert len(caught) == 1
