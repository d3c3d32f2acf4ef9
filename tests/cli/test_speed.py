"""What needs no network answers without PyTorch, which takes seconds to import."""

import json
import os
import subprocess
import sys

import pytest

QUICK = {
    "--help": 0,
    "--version": 0,
    "": 2,
    "list": 0,
    "list --help": 0,
    "list --json -": 0,
    "trian gan": 2,
    "train": 2,
    "train --help": 0,
    "train gam": 2,
    "sample --help": 0,
    "sample vae --stepz 3": 2,
    "sample vae --n 0": 2,
    "sample vae --n 999999999999": 2,
    "sample vea": 2,
    "evaluate --help": 0,
    "evaluate vae --jsn x": 2,
    "compare --help": 0,
    "compare digits": 2,
    "fetch --help": 0,
    "fetch minst": 2,
}

HEAVY = ("torch", "lightning_fabric", "sklearn", "matplotlib", "scipy")

# One process for all of them, as each would take longer to start than to answer.
PROGRAM = """
import contextlib, io, json, sys
from companion.cli import main

commands, heavy = json.loads(sys.argv[1])
answers = []
for words in commands:
    before = set(sys.modules)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words.split())
    new = [name for name in heavy if name in set(sys.modules) - before]
    answers.append([code, out.getvalue(), err.getvalue(), new])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[int, str, str, list[str]]]:
    """By command: the exit code, what was printed on both streams, and what was newly imported."""
    folder = tmp_path_factory.mktemp("speed")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([list(QUICK), HEAVY])],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
        env=os.environ | {"COMPANION_DATA": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(QUICK, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("words", list(QUICK))
def test_it_imports_nothing_heavy(words, answers):
    code, out, err, imported = answers[words]
    assert code == QUICK[words], err
    assert imported == []
    # Mistakes and their remedy are on the error stream, all else on the other.
    assert bool(err) == (code == 2 and words != "")
    assert bool(out) == (not err)
    assert "Traceback" not in err
