"""Saved states of a training, from which it goes on exactly, and which survive whatever ends it.

A state is two files: `step-00001000.safetensors` with all tensors in full precision, and `step-00001000.json` with
everything else, where each tensor stands, the SHA-256 of the first file, and that of its own content. Both are
written beside their final names and renamed, the JSON last: where it lies, the state is whole. The newest two are
kept, so that there is one to fall back to. A pickle is neither written nor read.
"""

import contextlib
import errno
import hashlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from companion.files import WRITING, replacing, sync_folder, write_atomically

# 2: weight decay has parameter groups of its own, and the JSON a hash.
FORMAT = 2
KEPT = 2
# A state's JSON takes some kilobytes a layer; what is larger than this is something else.
LARGEST_JSON = 64 * 2**20

# As safetensors calls them.
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StateError(ValueError):
    """A saved state that is incomplete, altered or of another kind; or a folder without a valid one."""


class RunError(ValueError):
    """A run that cannot start as asked: its folder is taken or damaged, or it was begun with other settings."""


class DiskFullError(OSError):
    """There is no room for what was to be written. Nothing that had been saved before is lost."""


# --- Nested values as JSON, with the tensors aside ----------------------------------------------------------------


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Returns a JSON value that stands for a nested one, and puts its tensors into `tensors` under their paths."""
    if isinstance(value, Tensor):
        if value.dtype not in TYPES:
            raise TypeError(
                f"the state's {name} is a tensor of {value.dtype}, which cannot be saved."
            )
        tensors[name] = value.detach()
        return {"$tensor": name}
    if isinstance(value, Mapping):
        pairs = [(key, _split(item, f"{name}/{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        if all(isinstance(key, (str, int)) for key, _ in pairs):
            return {
                "$pairs": pairs
            }  # JSON's own keys are strings, but optimisers count their parameters
        raise TypeError(f"the state's {name} has keys that are neither strings nor whole numbers.")
    if isinstance(value, (list, tuple)):
        items = [_split(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"the state's {name} is a {type(value).__name__}, which cannot be saved.")


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverts `_split`."""
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_join(item, tensors) for item in value["$tuple"])
    if "$pairs" in value:
        return {key: _join(item, tensors) for key, item in value["$pairs"]}
    return {key: _join(item, tensors) for key, item in value.items()}


# --- Writing ------------------------------------------------------------------------------------------------------


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yields a safetensors file piece by piece, so that no more than one tensor is copied at a time.

    Tensors that share memory are each written out, and all in the order of their indices, whatever theirs in
    memory (channels last, say).
    """
    # The widest types first, as the format's own library has it, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for name in names:
        flat = tensors[name].cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def state_path(folder: Path, step: int) -> Path:
    """Returns where the tensors of a step's state lie."""
    return folder / f"step-{step:08d}.safetensors"


def _steps(folder: Path, suffix: str) -> list[int]:
    """Returns the steps of a folder's states that have a file with this suffix, the newest first."""
    if not folder.is_dir():
        return []
    pattern = re.compile(r"step-(\d{8,})" + re.escape(suffix))
    found = (pattern.fullmatch(path.name) for path in folder.iterdir())
    return sorted({int(match[1]) for match in found if match}, reverse=True)


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps of the states in a folder, the newest first; whether they are valid is not looked at."""
    return _steps(folder, ".json")


def last_state(folder: Path) -> str:
    """Returns a sentence that names the newest saved state."""
    steps = saved_steps(folder)
    if not steps:
        return f"No state had been saved in {str(folder)!r} yet."
    return f"The last good state is {state_path(folder, steps[0]).name!r} in {str(folder)!r}."


@contextlib.contextmanager
def room(folder: Path, what: str, needed: int | None = None) -> Iterator[None]:
    """Turns the system's "no space left" into an error that says what is safe and what to do.

    Args:
        folder: where something is written.
        what: what that is.
        needed: its bytes, where they are known.

    Raises:
        DiskFullError: if the disk, the quota or the largest allowed file is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(folder).free
        size = "" if needed is None else f" of {needed:,} bytes"
        raise DiskFullError(
            error.errno,
            f"no room for {what}{size} in {str(folder)!r}, whose disk has {free:,} bytes free "
            f"({error.strerror}). {last_state(folder)} Make room and "
            f"{'resume' if saved_steps(folder) else 'begin again'}.",
        ) from error


def save_state(folder: str | Path, step: int, state: Mapping[str, Any], kept: int = KEPT) -> Path:
    """Writes a state, and once it is safe removes all but the newest few.

    Args:
        folder: where to; it is created if need be.
        step: of the state, which is part of the files' names.
        state: nested dicts (with strings or whole numbers as keys), lists and tuples of tensors, numbers,
            strings, booleans and None.
        kept: how many states stay.

    Returns:
        The path of the tensors' file.

    Raises:
        TypeError: if the state holds anything else.
        DiskFullError: if there is no room; what had been saved before is still there.
    """
    folder = Path(folder)
    path = state_path(folder, step)
    tensors: dict[str, Tensor] = {}
    skeleton = _split(dict(state), "state", tensors)
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    with room(folder, f"the state {path.stem!r}", needed):
        folder.mkdir(parents=True, exist_ok=True)
        # A state of the same step that turned out to be damaged must not vouch for the new tensors.
        path.with_suffix(".json").unlink(missing_ok=True)
        digest = hashlib.sha256()
        with replacing(path) as file:
            for piece in _pieces(tensors):
                digest.update(piece)
                file.write(piece)
        card = {"format": FORMAT, "step": step, "sha256": digest.hexdigest(), "state": skeleton}
        card["own sha256"] = _digest(card)
        write_atomically(path.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())
    # Of later steps there are only states that were refused when the run was resumed from an earlier one.
    prune(folder, step, kept, later=True)
    sync_folder(folder)
    return path


def prune(folder: Path, step: int, kept: int = KEPT, later: bool = False) -> None:
    """Removes the states before a step but the newest few, which a process that was killed may not have come to.

    Args:
        folder: where states were saved.
        step: of the newest state that counts.
        kept: how many stay, with that one.
        later: remove those of later steps, too.
    """
    stay = [other for other in saved_steps(folder) if other <= step][:kept]
    # The mark goes first: tensors without it are no state, but it without them would be a damaged one.
    for suffix in (".json", ".safetensors"):
        for other in _steps(folder, suffix):
            if other not in stay and (later or other < step):
                state_path(folder, other).with_suffix(suffix).unlink()


# What we write into a run's folder, the checkpoint included.
OURS = re.compile(r"\..+\.(safetensors|json|csv|png)" + WRITING.pattern)


def tidy(folder: Path) -> None:
    """Removes the hidden files that a killed process of ours left half written in a run's folder."""
    for path in folder.glob(".*"):
        if OURS.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


# --- Reading ------------------------------------------------------------------------------------------------------


def _sha256(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(card: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a JSON value, in its own order and with its numbers as Python writes them."""
    return hashlib.sha256(json.dumps(card, separators=(",", ":")).encode()).hexdigest()


def _card(mark: Path) -> dict[str, Any]:
    """Reads the JSON of a state, and checks it against its own hash, its file's name and the format."""
    with mark.open("rb") as file:
        text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise StateError(f"{mark.name!r} is larger than the JSON of any state.")
    card = json.loads(text.decode())
    if not isinstance(card, dict) or "format" not in card:
        raise StateError(f"{mark.name!r} holds no saved state.")
    if card["format"] != FORMAT:
        raise StateError(
            f"{mark.name!r} has format {card['format']!r}, this companion reads {FORMAT}. Resume it with the version "
            "that has written it, or train again in another folder."
        )
    said = card.pop("own sha256", None)
    if said != _digest(card):
        raise StateError(
            f"{mark.name!r} was altered: its content does not have the SHA-256 that it names."
        )
    if state_path(mark.parent, card["step"]).stem != mark.stem:
        raise StateError(f"{mark.name!r} is the state of step {card['step']}, under another name.")
    return card


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads a state back, after checking that it is whole and unaltered.

    Args:
        path: of the tensors' file or of the JSON beside it.

    Returns:
        What was given to `save_state`; tensors on the CPU.

    Raises:
        StateError: if a file is missing, truncated, altered, renamed or something else; the message names it.
    """
    path = Path(path).with_suffix(".safetensors")
    mark = path.with_suffix(".json")
    reading = mark
    try:
        card = _card(mark)
        reading = path
        with path.open("rb") as file:
            found = _sha256(file)
        if found != card["sha256"]:
            raise StateError(
                f"{path.name!r} is truncated or was altered: its SHA-256 is {found}, {mark.name!r} says "
                f"{card['sha256']}."
            )
        state = _join(card["state"], load_file(path))
        if not isinstance(state, dict):
            raise StateError(f"{mark.name!r} holds no saved state.")
        return state
    except StateError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise StateError(f"{reading.name!r} is {'missing' if missing else 'a folder'}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StateError(f"{mark.name!r} is truncated or was altered: {error}.") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        SafetensorError,
    ) as error:  # whatever reading can meet in a file that somebody else has made
        raise StateError(
            f"{mark.name!r} and {path.name!r} hold no saved state: {type(error).__name__}: {error}."
        ) from error


def newest_state(
    folder: str | Path, check: Callable[[dict[str, Any], int], None] | None = None
) -> dict[str, Any] | None:
    """Returns the newest valid state of a folder, and warns once, by name, about newer ones that are damaged.

    Args:
        folder: where states were saved.
        check: receives a state and its step, and raises `StateError` if it is none of its kind.

    Returns:
        The state, or None where none was ever completed.

    Raises:
        StateError: if there are states but none is valid; the message names them all.
    """
    folder = Path(folder)
    marked = saved_steps(folder)
    steps = sorted({*marked, *_steps(folder, ".safetensors")}, reverse=True)
    problems: list[str] = []
    state, goes_on = None, "Starting from the beginning."
    for step in steps:
        path = state_path(folder, step)
        try:
            found = load_state(path)
            if check is not None:
                check(found, step)
        except StateError as error:
            problems.append(str(error))
        else:
            state, goes_on = found, f"Going on from {path.name!r}."
            break
    if state is None and marked:
        raise StateError(
            f"no saved state in {str(folder)!r} is valid: {' '.join(problems)} Restore one from a backup, or "
            "start again in another folder."
        )
    if problems:
        warnings.warn(f"{' '.join(problems)} {goes_on}", stacklevel=2)
    return state
