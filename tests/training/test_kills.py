"""A run that is killed at any moment and resumed ends with the bits of one that was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from companion.training.state import load_state, saved_steps, state_path

STEPS = 24
OPTIONS = {"settings": {"steps": STEPS}, "save_every": 1}


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    """A run that nothing happened to, and the seconds it took."""
    folders = [tmp_path_factory.mktemp("undisturbed") / name for name in "ab"]
    times = []
    for folder in folders:
        start = time.perf_counter()
        assert server.train(folder, **OPTIONS) == (0, json.dumps({"step": STEPS, "signal": 0}))
        times.append(time.perf_counter() - start)
    return folders[0], min(times)


def kills(server, result, undisturbed, tmp_path, count, seed=0):
    """Kills runs `count` times at random moments, up to three times each, and compares each run's end."""
    reference, seconds = undisturbed
    expected = result(reference)
    rng = random.Random(seed)
    hits, attempts, runs = [], 0, 0
    while len(hits) < count:
        folder = tmp_path / str(runs)
        runs += 1
        for _ in range(3):
            attempts += 1
            assert attempts < 5 * count, "most runs end before they are killed"
            steps = saved_steps(folder)
            left = 1 - (steps[0] if steps else 0) / STEPS
            code = server.kill_after(
                rng.random() * seconds * left, folder, restarted=True, **OPTIONS
            )
            if code == 0:
                break
            assert code == -signal.SIGKILL
            steps = saved_steps(folder)
            hits.append(steps[0] if steps else 0)
        code, line = server.train(folder, restarted=True, **OPTIONS)
        assert (code, line) == (0, json.dumps({"step": STEPS, "signal": 0}))
        assert result(folder) == expected
        assert not list(folder.glob(".*")), "half-written files stay behind"
        assert len(list(folder.iterdir())) == 5, "two states of two files, and the log"
    return hits


@pytest.mark.system
def test_twenty_kills_at_random_moments(server, result, undisturbed, tmp_path):
    hits = kills(server, result, undisturbed, tmp_path, 20)
    assert len(hits) >= 20
    assert len(set(hits)) >= 5, f"the kills do not spread over the run: {hits}"


def test_a_kill_at_every_moment_of_saving(server, result, tmp_path):
    """Just before each call by which a state reaches the disk, of three states, the last of which prunes."""
    options = {"objective": "denoiser", "settings": {"steps": 3}, "save_every": 1}
    code, _ = server.train(tmp_path / "reference", **options)
    assert code == 0
    expected = result(tmp_path / "reference")
    killed = 0
    for number in range(1, 200):
        folder = tmp_path / str(number)
        code, line = server.train(folder, die_at_call=number, **options)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        # Once a state is there, there is always a valid one.
        steps = saved_steps(folder)
        if steps:
            load_state(state_path(folder, steps[0]))
        code, line = server.train(folder, restarted=True, **options)
        assert code == 0, line
        assert result(folder) == expected
        assert len(list(folder.iterdir())) == 5, "two states of two files, and the log"
    assert killed > 30


def test_kills_change_nothing_where_nothing_is_saved_yet(server, result, undisturbed, tmp_path):
    reference, seconds = undisturbed
    folder = tmp_path / "run"
    rare = OPTIONS | {"save_every": 1000}
    assert server.kill_after(seconds / 20, folder, **rare) == -signal.SIGKILL
    assert not saved_steps(folder)
    code, line = server.train(folder, restarted=True, **rare)
    assert code == 0, line
    assert result(folder) == result(reference)


@pytest.mark.system
def test_a_kill_of_a_whole_program(server, worker, result, tmp_path):
    """As a user would: a program that Python starts, `kill -9`, and the same program again."""
    folder, steps = tmp_path / "run", 200
    long = {"settings": {"steps": steps}, "save_every": 20}
    assert server.train(tmp_path / "reference", **long)[0] == 0

    def start() -> subprocess.Popen:
        options = json.dumps(long | {"folder": str(folder), "restarted": True})
        return subprocess.Popen(
            [sys.executable, worker.__file__, "train", options],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )

    process = start()
    while len(saved_steps(folder)) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 40 <= saved_steps(folder)[0] < steps
    process = start()
    output, _ = process.communicate(timeout=120)
    assert json.loads(output) == {"step": steps, "signal": 0}
    assert result(folder) == result(tmp_path / "reference")
