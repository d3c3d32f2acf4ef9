"""The command line: `companion train`, `sample`, `evaluate`, `compare`, `list` and `fetch`.

What the user can mend is said in one line, without a traceback, and every ending has its own exit code, so that
scripts can tell them apart. Each command is a file of its own, imported when it is called, and a thin layer over
functions that Python programs call as well. Nothing here imports PyTorch, so that help and mistakes are answered at
once.
"""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from companion.errors import unknown_name

__all__ = ["COMMANDS", "DIVERGED", "DONE", "EXIT_CODES", "FAILED", "WRONG_USAGE", "main"]

DONE, FAILED, WRONG_USAGE, DIVERGED = 0, 1, 2, 3

EXIT_CODES = """exit codes:
  0    done
  1    failed for a reason that you can fix: missing data, a damaged file, a full disk, a folder in use
  2    wrong usage: an unknown command, name or flag, or a value that is not allowed
  3    the training diverged: its loss is NaN or infinite
  130  stopped by Ctrl-C; a training saved its state first
  143  stopped by SIGTERM; a training saved its state first

COMPANION_DATA names the folder of downloaded data sets. With COMPANION_TRACEBACK=1 errors show where they arose.
"""

# Each command's module in this package, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "train a network by a recipe, and write its checkpoint"),
    "sample": ("sample", "draw images from a checkpoint"),
    "evaluate": ("evaluate", "measure a checkpoint: a table, and JSON"),
    "compare": ("compare", "measure two sets of images beside each other: FID, KID and others"),
    "list": ("listing", "list recipes, checkpoints with their numbers, and data sets"),
    "fetch": ("fetch", "download a data set"),
}

ABOUT = f"""Generative models: train, sample and measure them.

usage: companion COMMAND [ARGUMENTS]
       companion --version

commands (companion COMMAND --help says more of each):
{chr(10).join(f"  {name:<9} {about}" for name, (_, about) in COMMANDS.items())}

examples:
  companion list
  companion train digit-cnn --data digits --steps 300 --output /tmp/mine
  companion evaluate digit-cnn --json numbers.json

{EXIT_CODES}"""


def command(name: str) -> Callable[[Sequence[str]], int]:
    """Returns the function that runs a command; its module is imported here."""
    return importlib.import_module(f"companion.cli.{COMMANDS[name][0]}").run


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(ABOUT.rstrip())
        return DONE if words else WRONG_USAGE
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"companion {version('companion')}")
        return DONE
    if words[0] not in COMMANDS:
        raise unknown_name("command", words[0], COMMANDS, "companion --help says more.")
    return command(words[0])(words[1:])


# --- Errors -------------------------------------------------------------------------------------------------------


def _is(error: BaseException, module: str, *names: str) -> bool:
    """Says whether an error is of one of a module's classes; one of a module that nobody imported cannot be."""
    found = sys.modules.get(module)
    return found is not None and isinstance(error, tuple(getattr(found, name) for name in names))


def _complaint(error: BaseException) -> tuple[int, str] | None:
    """Returns the exit code for an error and what to say about it; None for what must be a mistake of ours."""
    text = str(error)
    if _is(error, "companion.training", "DivergedError"):
        return DIVERGED, text
    if _is(error, "companion.recipes.making", "Unmeasured"):
        return (130 if getattr(error, "stopped", False) else FAILED), text
    if _out_of_memory(error):
        return FAILED, f"out of memory: lower --batch-size, or raise --accumulate. {text}".strip()
    if _is(error, "companion.training", "DiskFullError"):
        return FAILED, getattr(error, "strerror", None) or text
    mendable = (
        _is(error, "companion.training", "RunError", "StateError")
        or _is(error, "companion.checkpoints", "CheckpointError")
        or _is(error, "companion.data", "DataError")
        or isinstance(error, ImportError)
    )
    if mendable:
        return FAILED, text
    if isinstance(error, OSError):
        if not error.strerror:
            return FAILED, text
        what = f"{str(error.filename)!r}: " if error.filename else ""
        return FAILED, f"{what}{error.strerror}. Give another path, or put that one right."
    if isinstance(error, ValueError | ArithmeticError):
        return WRONG_USAGE, text
    return None


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU, PyTorch has no class of its own for this.
    cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return cpu or isinstance(error, MemoryError) or _is(error, "torch", "OutOfMemoryError")


def _speaks(error: BaseException) -> bool:
    """Says whether this process reports an error: of those on one machine, which all meet it, only the first."""
    place = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return place == "0" or _out_of_memory(error)


def _say_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after `companion`; by default those of the process.

    Returns:
        The exit code (`companion --help` lists them).
    """
    # Fabric announces precision and processes, which whoever asked for them knows.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            return _run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:  # after --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        found = _complaint(error)
        if found is None or os.environ.get("COMPANION_TRACEBACK"):
            raise
        code, message = found
        if _speaks(error):
            print(f"error: {message}", file=sys.stderr)
        return code
