"""Runs everything that continuous integration checks, in order of cost, and says where the time went.

python book/tools/checks.py            all of it, as `make test`
python book/tools/checks.py --quick    as far as the unit tests, as `make check`
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# Two notebooks at a time with one thread each do more work on two cores than one with two threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PYTEST = [str(BIN / "python"), "-m", "pytest", "-q"]
# Two at a time, without nbval, whose import takes as long as PyTorch's. Many tests start a Python of their own:
# compiled modules are kept even where the environment asks for none, or each would compile them again.
UNIT_TESTS = [*PYTEST, "tests", "--ignore=tests/book", "-p", "no:nbval", "-n", "2"]
FOR_UNIT_TESTS = {**ONE_THREAD, "PYTHONDONTWRITEBYTECODE": ""}

# The README's commands use one copy of the book and so stay in one process; pages go to whichever is free. The README
# comes first, since its longest command is longer than any page.
ON_THE_BUILT_BOOK = [
    "tests/book/test_readme.py",
    "tests/book/test_browser.py",
    "tests/book/test_build.py",
]

QUICK: list[tuple[str, list[str], dict[str, str]]] = [
    ("lint", [str(BIN / "ruff"), "check", "."], {}),
    ("format", [str(BIN / "ruff"), "format", "--check", "."], {}),
    ("import layering", [str(BIN / "lint-imports")], {}),
    ("types", [str(BIN / "mypy"), "-n", "2"], {}),
    (
        "unit tests",
        [*UNIT_TESTS, "--dist", "loadgroup", "-m", "not system", "--durations=5"],
        FOR_UNIT_TESTS,
    ),
]

STEPS: list[tuple[str, list[str], dict[str, str]]] = [
    *QUICK,
    ("system tests", [*UNIT_TESTS, "--dist", "load", "-m", "system", "-rs"], FOR_UNIT_TESTS),
    (
        "notebook checks",
        [*PYTEST, "tests/book", *(f"--ignore={path}" for path in ON_THE_BUILT_BOOK)],
        {},
    ),
    (
        "nbval",
        # How long a cell may take is in book/conftest.py.
        [
            *PYTEST,
            "book",
            "--nbval",
            "--nbval-current-env",
            "--nbval-sanitize-with=book/nbval.cfg",
            "-p",
            "no:cacheprovider",
            "-n",
            "2",
            "--dist",
            "loadfile",
            "--durations=5",
        ],
        ONE_THREAD,
    ),
    ("book build", [str(BIN / "python"), "book/tools/build.py"], {}),
    (
        "browser and README",
        [*PYTEST, *ON_THE_BUILT_BOOK, "-n", "2", "--dist", "loadgroup", "-rs", "--durations=5"],
        ONE_THREAD,
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the project's checks.")
    parser.add_argument("--quick", action="store_true", help="only as far as the unit tests")
    steps = QUICK if parser.parse_args().quick else STEPS
    times: list[tuple[str, float, bool]] = []
    for name, command, extra in steps:
        print(f"\n=== {name} ===", flush=True)
        begin = time.perf_counter()
        status = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **extra}, check=False
        ).returncode
        times.append((name, time.perf_counter() - begin, status == 0))
        if status:
            break
    print("\n=== where the time went ===")
    for name, seconds, passed in times:
        print(f"{name:<18}{seconds:7.1f} s  {'ok' if passed else 'FAILED'}")
    print(f"{'together':<18}{sum(seconds for _, seconds, _ in times):7.1f} s")
    failed = [name for name, _, passed in times if not passed]
    print(f"{len(times) - len(failed)} passed, {len(failed)} failed")
    if failed:
        print(f"The step that failed is '{failed[0]}'; later steps were not run.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
