"""What needs no network answers without PyTorch, which takes seconds to import."""

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

PROGRAM = """
import sys
from companion.cli import main
code = main(sys.argv[1:])
found = [name for name in ("torch", "lightning_fabric", "sklearn", "matplotlib") if name in sys.modules]
print("IMPORTED", *found, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("words", list(QUICK))
def test_it_imports_nothing_heavy(words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words.split()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"COMPANION_DATA": str(tmp_path)},
    )
    assert done.returncode == QUICK[words], done.stderr
    assert done.stderr.splitlines()[-1] == "IMPORTED"
    assert "Traceback" not in done.stderr
