"""Several processes do what one does; one that dies is started again; SIGTERM reaches all of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from companion.training import launch, load_state
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
def test_two_processes_play_the_same_game_as_one(objective, worker, server, tmp_path):
    """Batch statistics of all processes, spectral norms, the penalty's places and every player's noise included.

    Rounding grows faster in a game than in a descent, and the penalty takes second derivatives of it.
    """
    options = {"objective": objective, "settings": {"steps": 6}, "save_every": 6, "log_every": 1}
    code, line = server.train(tmp_path / "one", **options)
    assert code == 0, line
    finish(start(worker, options | {"folder": str(tmp_path / "two"), "devices": 2}))
    one, two = (load_state(state_path(tmp_path / name, 6))["training"] for name in ("one", "two"))
    torch.testing.assert_close(two["network"], one["network"], rtol=1e-3, atol=1e-4)
    rows = [
        torch.tensor([[float(v) for v in r.split(",")][3:] for r in text.splitlines()[1:]])
        for text in ((tmp_path / name / "log.csv").read_text() for name in ("two", "one"))
    ]
    torch.testing.assert_close(*rows, rtol=2e-3, atol=1e-4)


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_slurm(worker, alone, tmp_path):
    """Two tasks as srun starts them: by nothing but SLURM's variables."""
    options = OPTIONS | {"folder": str(tmp_path / "run")}
    for _ in range(3):  # another program may take the port before we do
        slurm = {
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NNODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_JOB_ID": "1234",
            "SLURM_JOB_NAME": "train",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        tasks = [
            start(worker, options, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **slurm)
            for rank in range(2)
        ]
        results = [task.communicate(timeout=200) for task in tasks]
        if "EADDRINUSE" not in results[0][1]:
            break
    assert [task.returncode for task in tasks] == [0, 0], results
    assert json.loads(results[0][0].splitlines()[-1]) == {"step": STEPS, "signal": 0}
    assert_same_training(tmp_path / "run", alone[0])


# ---------------------------------------------------------------- mistakes


def test_counts_must_be_positive():
    with pytest.raises(ValueError, match="at least one device and one node"):
        launch(devices=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"cannot train on 1 × 1 of 'cuda' .* not available"):
        launch(accelerator="cuda")


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


def test_one_process():
    fabric = launch(accelerator="cpu", precision="bf16-mixed")
    assert (fabric.world_size, fabric.device) == (1, torch.device("cpu"))
    with fabric.autocast():
        assert torch.is_autocast_enabled("cpu")
