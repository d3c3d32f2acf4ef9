"""What it costs to start the command line where it needs no network, beside an import of PyTorch."""

import os
import resource
import statistics
import subprocess
import sys

COMMANDS = (["--help"], ["--version"], ["list"])
PEER = [sys.executable, "-c", "import torch"]


def seconds(words: list[str], folder) -> float:
    """The processor time of a program, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        words,
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"COMPANION_DATA": str(folder)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_version_and_list_cost_a_quarter_of_importing_pytorch(tmp_path, capsys):
    """That they import none of it is tested in `tests/cli`."""
    programs = {
        " ".join(words): [sys.executable, "-m", "companion", *words] for words in COMMANDS
    } | {"import torch": PEER}
    for words in programs.values():
        seconds(words, tmp_path)  # the first start finds caches cold
    times = {name: [] for name in programs}
    for _ in range(3):
        for name, words in programs.items():
            times[name].append(seconds(words, tmp_path))
    middle = {name: statistics.median(found) for name, found in times.items()}
    peer = middle.pop("import torch")
    with capsys.disabled():
        shown = ", ".join(f"{name} {1e3 * found:.0f} ms" for name, found in middle.items())
        print(f"\nStarting companion: {shown}; import torch {1e3 * peer:.0f} ms")
    for name, found in middle.items():
        assert found < peer / 4, name
