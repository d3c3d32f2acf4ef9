"""Damaged states and logs: only the documented errors, and never other data than were saved."""

import json
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from companion.training import RunError, StateError, load_state, newest_state, run
from companion.training import state as module
from companion.training.log import Log
from companion.training.run import _check
from companion.training.state import state_path

STEPS = 4


# ---------------------------------------------------------------- mutations of bytes


def flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def overwrite(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start : start + 8] = rng.randbytes(rng.randint(1, 8))


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def lose(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.randint(1, 40)]


def double(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + rng.randint(1, 200)]


def insert(content: bytearray, rng: random.Random) -> None:
    words = [
        b"\0",
        b"\xff",
        b'"',
        b",",
        b"\n",
        b"{",
        b"[" * 5000,
        b"9" * 5000,
        b"null",
        b"x" * 140_000,
    ]
    start = rng.randrange(len(content))
    content[start:start] = rng.choice(words)


def digit(content: bytearray, rng: random.Random) -> None:
    """Another number in the place of one: what a parser cannot see."""
    places = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
    if places:
        content[rng.choice(places)] = rng.randrange(48, 58)


def swap_lines(content: bytearray, rng: random.Random) -> None:
    lines = content.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    content[:] = b"\n".join(lines)


MUTATIONS = (flip, overwrite, cut, lose, double, insert, digit, swap_lines)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three random changes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if changed:
            rng.choice(MUTATIONS)(changed, rng)
    return bytes(changed)


# ---------------------------------------------------------------- mutations of JSON, with a hash that fits

ODD = (
    None,
    True,
    -1,
    0,
    10**30,
    1e300,
    float("nan"),
    "",
    "word",
    [],
    {},
    [[]],
    {"$tensor": "x"},
    {"$pairs": 1},
)


def places(value, found: list) -> list:
    """All containers and keys of a JSON value."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in list(keys):
        found.append((value, key))
        places(value[key], found)
    return found


def resigned(text: bytes, rng: random.Random) -> bytes:
    """Changed by somebody who knows how states are signed."""
    card = json.loads(text)
    container, key = rng.choice(places(card["state"], []))
    what = rng.random()
    if what < 0.25:
        del container[key]
    elif what < 0.5:
        other, source = rng.choice(places(card["state"], []))
        container[key] = json.loads(json.dumps(other[source]))
    else:
        container[key] = rng.choice(ODD)
    card.pop("own sha256")
    return json.dumps(card | {"own sha256": module._digest(card)}).encode()


# ---------------------------------------------------------------- states


def bits(value):
    """A nested state with its tensors as bytes, to be compared with ==."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def fuzz_states(worker, folder: Path, count: int, seed: int) -> dict[str, int]:
    """Damages the newest of two states in many ways; returns how often each way ended how."""
    run(worker.trainer("denoiser", steps=STEPS), folder, save_every=2, progress=False)
    paths = [state_path(folder, STEPS).with_suffix(suffix) for suffix in (".json", ".safetensors")]
    whole = {path: path.read_bytes() for path in paths}
    new, old = (bits(load_state(state_path(folder, step))) for step in (STEPS, 2))
    training = worker.trainer("denoiser", steps=STEPS + 1)
    rng, ends = random.Random(seed), dict.fromkeys(("refused", "the same", "trained"), 0)
    for _ in range(count):
        signed = rng.random() < 0.3
        path = paths[0] if signed or rng.random() < 0.7 else paths[1]
        path.write_bytes((resigned if signed else mutated)(whole[path], rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = newest_state(folder, _check)
        if not signed:
            # Damage is noticed, or it has changed nothing that is read.
            same = bits(found) == new
            assert same or bits(found) == old
            ends["the same" if same else "refused"] += 1
        else:
            ends[_trained(training, found)] += 1
        path.write_bytes(whole[path])
    return ends


def _trained(training, found) -> str:
    """Lets a trainer go on from whatever was loaded: it says no, or it trains without harm to the memory."""
    try:
        training.load_state_dict(found["training"])
        training.advance()
    except (StateError, FloatingPointError):
        return "refused"
    return "trained"


def test_damaged_states(worker, tmp_path):
    ends = fuzz_states(worker, tmp_path / "run", 500, seed=0)
    assert ends["refused"] > 200, ends
    assert ends["trained"] > 10, ends


@pytest.fixture(scope="module")
def finished(worker, tmp_path_factory):
    """The folder of a run with two states."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(worker.trainer("denoiser", steps=STEPS), folder, save_every=2, progress=False)
    return folder


@pytest.mark.parametrize("seed", range(25))
def test_a_run_goes_on_from_the_older_state_or_says_why_not(worker, finished, tmp_path, seed):
    """The whole way, signed changes included: a documented error, or an end."""
    folder = shutil.copytree(finished, tmp_path / "run")
    rng = random.Random(seed)
    path = state_path(folder, STEPS).with_suffix(".json")
    path.write_bytes((resigned if seed % 2 else mutated)(path.read_bytes(), rng))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outcome = run(
                worker.trainer("denoiser", steps=STEPS), folder, resume=True, progress=False
            )
        except (RunError, StateError, FloatingPointError) as error:
            said = str(error)
        else:
            said = str(folder) if outcome.step == STEPS else "ended early"
    assert str(folder) in said


# ---------------------------------------------------------------- logs


def fuzz_logs(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Damages a log in many ways; returns how often it was refused, or read as it was."""
    path = folder / "log.csv"
    log = Log(path, 0)
    for step in range(1, 21):
        row = {
            "step": step,
            "seconds": step * 0.1,
            "samples_per_second": 9.5,
            "learning_rate": 1e-3,
        }
        log.append(row | {"loss": 1 / step} | ({"late": 2.5} if step > 10 else {}))
        if step == 15:
            digest, expected = log.digest, [dict(row) for row in log.rows]
    whole = path.read_bytes()
    expected = [{name: str(value) for name, value in row.items()} for row in expected]
    rng, ends = random.Random(seed), {"refused": 0, "the same": 0}
    for _ in range(count):
        path.write_bytes(mutated(whole, rng))
        try:
            rows = Log(path, 15, digest).rows
        except RunError as error:
            said, rows = str(error), None
            ends["refused"] += 1
        if rows is None:
            assert str(path) in said
        else:
            ends["the same"] += 1
            assert [{k: v for k, v in row.items() if v != ""} for row in rows] == expected
    return ends


def test_damaged_logs(tmp_path):
    ends = fuzz_logs(tmp_path, 500, seed=0)
    assert ends["refused"] > 200, ends
    assert ends["the same"] > 50, (
        ends
    )  # as the last rows are cut off when a run goes on from an older state
