"""What the tests of training share: their worker, and a server that forks trainings to be killed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from companion.training.state import load_state, saved_steps, state_path

WORKER = Path(__file__).with_name("worker.py")
_spec = importlib.util.spec_from_file_location("training_worker", WORKER)
_worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_worker)

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def worker():
    """The module of the networks that are trained here."""
    return _worker


class Server:
    """Forks trainings."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=ENVIRONMENT,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        line = self.process.stdout.readline()
        assert line, "the server has died"
        return line.strip()

    def start(self, folder: Path, **options) -> None:
        """Starts a training in a folder."""
        self.stderr = folder.with_suffix(".stderr")
        text = json.dumps({"folder": str(folder), "stderr": str(self.stderr)} | options)
        self.process.stdin.write(text + "\n")

    def number(self) -> int:
        """Returns the number of the process that was started."""
        return int(self._line())

    def wait(self) -> int:
        """Waits for the training, and returns its exit code; −9 if it was killed."""
        return int(self._line())

    def train(self, folder: Path, **options) -> tuple[int, str]:
        """Runs a training to its end; returns its exit code and the last line it wrote.

        With slurm=True there are two processes, which find one another as those that srun starts do; the exit code is
        that of one that failed, if one did, and the line is the first one's.
        """
        self.start(folder, **options)
        self.number()
        code = self.wait()
        lines = self.stderr.read_text().splitlines()
        return code, lines[-1] if lines else ""

    def kill_after(self, seconds: float, folder: Path, **options) -> int:
        """Starts a training, kills it after some seconds, and returns its exit code: 0 if it was quicker."""
        self.start(folder, kill_after=seconds, **options)
        return self.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.close()


def final(folder: Path) -> tuple[bytes, dict, str]:
    """All of a run that must not depend on how often it was killed: tensors, other numbers, the log without times."""
    path = state_path(folder, saved_steps(folder)[0])
    load_state(path)  # valid at all
    state = json.loads(path.with_suffix(".json").read_text())["state"]
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    log = "\n".join(",".join([row[0], *row[3:]]) for row in rows)
    return path.read_bytes(), {k: state[k] for k in ("training", "averages")}, log


@pytest.fixture(scope="session")
def result():
    """Returns `final`, by which two runs are compared bit by bit."""
    return final
