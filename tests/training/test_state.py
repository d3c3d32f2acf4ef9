"""Saved states: exact, atomic, refused when damaged, and safe on a full disk."""

import errno
import json
import os
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from companion.training import DiskFullError, StateError, load_state, newest_state, save_state
from companion.training import state as module
from companion.training.state import prune, saved_steps, state_path, tidy


def equal(a, b) -> bool:
    """Whether nested values are the same, in types and bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def example(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "step": seed,
        "weights": torch.randn(5, 3, generator=generator),
        "moments": {0: {"x": 1.5}},
    }


# ---------------------------------------------------------------- exactness

keys = st.one_of(st.text(max_size=5), st.integers(-5, 10**12))
numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
tensors = st.builds(
    lambda dtype, shape: torch.randint(0, 2, tuple(shape)).to(dtype),
    st.sampled_from(list(module.TYPES)),
    st.lists(st.integers(0, 3), max_size=4),
)
nested = st.recursive(
    numbers | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=50)
@given(value=st.dictionaries(keys, nested, max_size=4))
def test_what_is_saved_comes_back_bit_by_bit(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("states")
    assert equal(load_state(save_state(folder, 7, {"value": value})), {"value": value})


def test_numbers_that_are_none_and_signed_zeros(tmp_path):
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45])
    value = {"tensor": special, "half": special.bfloat16(), "float": -0.0, "$odd": float("inf")}
    assert equal(load_state(save_state(tmp_path, 1, value)), value)


def test_shared_memory_views_and_other_orders_in_memory(tmp_path):
    whole = torch.randn(4, 3, 5, 6)
    last = whole.to(memory_format=torch.channels_last)
    value = {
        "whole": whole,
        "again": whole,
        "part": whole[1:3, :, ::2],
        "turned": whole.transpose(0, 3),
        "last": last,
        "same everywhere": torch.ones(1).expand(10),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(3),
    }
    found = load_state(save_state(tmp_path, 1, value))
    assert all(torch.equal(found[key], value[key]) for key in value)


def test_the_tensors_are_a_safetensors_file(tmp_path):
    """One that anyone's library reads, and that is aligned."""
    value = {"bytes": torch.ones(3, dtype=torch.uint8), "wide": torch.ones(2, dtype=torch.float64)}
    path = save_state(tmp_path, 1, value)
    assert set(load_file(path)) == {"state/bytes", "state/wide"}
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0
    table = json.loads(path.read_bytes()[8 : 8 + header])
    assert table["state/wide"]["data_offsets"] == [0, 16]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"b": {1, 2}}}, "state/a/b is a set"),
        ({"a": [object()]}, "state/a/0 is a object"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, "state/a is a tensor of torch.complex64"),
        ({"a": {1.5: 2}}, "state/a has keys that are neither"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, value, message):
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path, 1, value)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- keeping and falling back


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 15, 100_000_000):
        save_state(tmp_path, step, example(step))
    assert saved_steps(tmp_path) == [100_000_000, 15]
    assert len(list(tmp_path.iterdir())) == 4
    assert newest_state(tmp_path)["step"] == 100_000_000


def test_what_a_killed_process_did_not_come_to_is_made_up_for(tmp_path):
    """Killed between the writing of a state and the removal of old ones, or between the two files of an old one."""
    for step in (5, 10, 15, 20, 25):
        save_state(tmp_path, step, example(step), kept=9)
    state_path(tmp_path, 5).with_suffix(".json").unlink()
    prune(tmp_path, 20)
    # 25 was refused, say; it stays until another state is saved.
    assert saved_steps(tmp_path) == [25, 20, 15]
    assert len(list(tmp_path.iterdir())) == 6
    prune(tmp_path, 20, later=True)
    assert saved_steps(tmp_path) == [20, 15]


def test_no_folder_and_no_state(tmp_path):
    assert newest_state(tmp_path / "none") is None
    (tmp_path / "step-1.json").write_text("{}")
    (tmp_path / "notes-00000001.json").write_text("{}")
    assert newest_state(tmp_path) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "tensors cut": lambda path: cut(path),
    "tensors emptied": lambda path: path.write_bytes(b""),
    "one bit flipped": lambda path: flip(path),
    "tensors missing": lambda path: path.unlink(),
    "JSON cut": lambda path: path.with_suffix(".json").write_bytes(
        path.with_suffix(".json").read_bytes()[:50]
    ),
    "JSON emptied": lambda path: path.with_suffix(".json").write_bytes(b""),
    "JSON is no text": lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"),
    "JSON of another": lambda path: path.with_suffix(".json").write_text("[1, 2]"),
    "JSON without tensors": lambda path: path.with_suffix(".json").write_text('{"format": 1}'),
    "another format": lambda path: path.with_suffix(".json").write_text('{"format": 9}'),
    "JSON missing": lambda path: path.with_suffix(".json").unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_state_is_refused_by_name_and_the_one_before_is_used(tmp_path, kind):
    save_state(tmp_path, 10, example(10))
    path = save_state(tmp_path, 20, example(20))
    DAMAGE[kind](path)
    with pytest.raises(StateError, match="step-00000020"):
        load_state(path)
    with pytest.warns(
        UserWarning, match=r"step-00000020.* Going on from 'step-00000010.safetensors'"
    ):
        state = newest_state(tmp_path)
    assert equal(state, example(10))
    # The run goes on from there, and what it saves takes the damaged one's place.
    save_state(tmp_path, 15, example(15))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(newest_state(tmp_path), example(15))
    assert saved_steps(tmp_path) == [15, 10]


def test_both_damaged(tmp_path):
    for step in (10, 20):
        flip(save_state(tmp_path, step, example(step)))
    with pytest.raises(StateError, match=r"no saved state in .* is valid: .*00020.*00010.* backup"):
        newest_state(tmp_path)


def test_a_first_state_that_was_never_completed(tmp_path):
    path = save_state(tmp_path, 10, example())
    path.with_suffix(".json").unlink()
    with pytest.warns(UserWarning, match=r"00010.json' is missing.* Starting from the beginning"):
        assert newest_state(tmp_path) is None


def sign(path, **changes):
    """Changes a state's JSON and gives it the hash that belongs to it, as whoever knows how could do."""
    mark = path.with_suffix(".json")
    card = json.loads(mark.read_text()) | changes
    card.pop("own sha256")
    mark.write_text(json.dumps(card | {"own sha256": module._digest(card)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 11}, "is the state of step 11, under another name"),
        ({"format": 1}, "has format 1, this companion reads 2. Resume it with the version"),
        ({"state": [1]}, "holds no saved state"),
        ({"state": {"$pairs": [[1, 2, 3]]}}, "hold no saved state: ValueError"),
        ({"state": {"$pairs": [[[], 2]]}}, "hold no saved state: TypeError"),
        ({"state": {"a": {"$tensor": "none"}}}, "hold no saved state: KeyError"),
        ({"state": {"a": {"$tensor": {}}}}, "hold no saved state: TypeError"),
        ({"state": {"a": {"$tuple": 3}}}, "hold no saved state: TypeError"),
    ],
)
def test_json_that_was_altered_and_signed_is_refused(tmp_path, changes, message):
    path = save_state(tmp_path, 10, example())
    sign(path)
    assert equal(load_state(path), example())
    sign(path, **changes)
    with pytest.raises(StateError, match=message):
        load_state(path)


def test_every_number_and_word_of_the_json_counts(tmp_path):
    path = save_state(tmp_path, 10, example() | {"seconds": 60.0, "odd": (1, None, True)})
    mark = path.with_suffix(".json")
    text = mark.read_text()
    changed = 0
    for match in re.finditer(r'-?\d+(\.\d+)?|"[^"]+"|true|null', text):
        word = match[0]
        other = {"true": "false", "null": "0"}.get(
            word, word[:-1] + '!"' if '"' in word else "9" + word
        )
        mark.write_text(text[: match.start()] + other + text[match.end() :])
        with pytest.raises(StateError, match=r"step-00000010\.json"):
            load_state(path)
        changed += 1
    assert changed > 20


def test_a_renamed_state_is_refused(tmp_path):
    path = save_state(tmp_path, 10, example())
    for suffix in (".json", ".safetensors"):
        path.with_suffix(suffix).rename(tmp_path / f"step-00000020{suffix}")
    with pytest.raises(StateError, match=r"'step-00000020\.json' is the state of step 10"):
        load_state(tmp_path / "step-00000020.json")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": 2, "step": ' + "9" * 5000 + "}",
        '{"a":' * 100_000 + "1" + "}" * 100_000,
    ],
    ids=["open lists", "a number of 5,000 digits", "nested dicts"],
)
def test_odd_json_is_refused_by_name(tmp_path, text):
    path = save_state(tmp_path, 10, example())
    path.with_suffix(".json").write_text(text)
    with pytest.raises(StateError, match=r"step-00000010\.json"):
        load_state(path)


def test_json_larger_than_any_is_not_read(tmp_path, monkeypatch):
    path = save_state(tmp_path, 10, example())
    monkeypatch.setattr(module, "LARGEST_JSON", 100)
    with pytest.raises(
        StateError, match=r"step-00000010\.json' is larger than the JSON of any state"
    ):
        load_state(path)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_folder_of_a_states_name(tmp_path, suffix):
    path = save_state(tmp_path, 10, example()).with_suffix(suffix)
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError, match=rf"'step-00000010\{suffix}' is a folder"):
        load_state(path)


def test_a_state_of_another_kind_falls_back_too(tmp_path):
    def check(state, step):
        if state["step"] != step:
            raise StateError(f"step {step} says {state['step']}.")

    save_state(tmp_path, 10, example(10))
    save_state(tmp_path, 20, example(19))
    with pytest.warns(UserWarning, match=r"step 20 says 19\. Going on from 'step-00000010"):
        assert newest_state(tmp_path, check)["step"] == 10


def test_two_damaged_states_are_one_warning(tmp_path):
    for step in (10, 20, 30):
        save_state(tmp_path, step, example(step), kept=3)
    for step in (20, 30):
        flip(state_path(tmp_path, step))
    with pytest.warns(UserWarning, match=r"00030.*00020.*from 'step-00000010") as caught:
        assert newest_state(tmp_path)["step"] == 10
    assert len(caught) == 1
    assert all(f"step-000000{n}" in str(caught[0].message) for n in (10, 20, 30))


def test_a_pickle_is_never_run(tmp_path):
    trace = tmp_path / "it-ran"

    class Bomb:
        def __reduce__(self):
            return (type(trace).touch, (trace,))

    path = save_state(tmp_path, 10, example())
    torch.save(Bomb(), path)
    with pytest.raises(StateError, match="altered"):
        load_state(path)
    # Even where the JSON vouches for it.
    with path.open("rb") as file:
        digest = module._sha256(file)
    sign(path, sha256=digest)
    with pytest.raises(StateError, match="hold no saved state"):
        load_state(path)
    assert not trace.exists()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    save_state(tmp_path, 10, example())
    left = [
        ".step-00000020.safetensors.0123456789abcdef.tmp",
        ".step-00000020.json.0123456789abcdef.tmp",
        ".log.csv.0123456789abcdef.tmp",
        ".sheet-00000010.png.0123456789abcdef.tmp",
        ".mine.safetensors.0123456789abcdef.tmp",
    ]
    others = [".hidden", ".step-notes", "log.csv", ".log.csv", ".log.csv.tmp"]
    for name in left + others:
        (tmp_path / name).touch()
    tidy(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & set(left)
    assert names >= {*others, "step-00000010.json", "step-00000010.safetensors"}


# ---------------------------------------------------------------- a full disk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("which", [1, 2])
def test_a_full_disk_at_any_write_loses_nothing(tmp_path, monkeypatch, code, call, which):
    save_state(tmp_path, 10, example(10))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def failing(function):
        def called(*args, **kwargs):
            nonlocal calls
            calls += 1
            # Writing sends the tensors' file in pieces, the JSON in one; fsync meets files and the folder.
            if (
                calls
                >= {"write": {1: 1, 2: 3}, "fsync": {1: 1, 2: 3}}.get(call, {1: 1, 2: 2})[which]
            ):
                raise OSError(code, os.strerror(code))
            return function(*args, **kwargs)

        return called

    with monkeypatch.context() as patch:
        if call == "write":
            opened = os.fdopen

            def fdopen(*args, **kwargs):
                file = opened(*args, **kwargs)
                return Wrapped(file, failing(file.write))

            patch.setattr(os, "fdopen", fdopen)
        elif call == "open":
            opens, fails = os.open, failing(os.open)
            patch.setattr(  # of new files, as a full disk has it
                os,
                "open",
                lambda path, flags, *m: (fails if flags & os.O_CREAT else opens)(path, flags, *m),
            )
        else:
            patch.setattr(os, call, failing(getattr(os, call)))
        with pytest.raises(DiskFullError) as caught:
            save_state(tmp_path, 20, example(20))
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "bytes free" in message
    assert "of 60 bytes" in message, "what was needed: 5 × 3 × 4"
    assert "last good state is 'step-00000010.safetensors'" in message
    assert caught.value.errno == code
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: after[name] for name in before} == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert equal(newest_state(tmp_path), example(10))
    # With room again, the same run saves the same state.
    save_state(tmp_path, 20, example(20))
    assert equal(newest_state(tmp_path), example(20))


class Wrapped:
    """A file whose `write` is another."""

    def __init__(self, file, write) -> None:
        self.file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)


def test_other_errors_of_the_system_stay_what_they_are(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(PermissionError):
        save_state(tmp_path, 1, example())


def test_a_full_disk_in_earnest(server, tmp_path, result):
    """The system lets a process write no larger file than a state needs; with room again, the run goes on."""
    options = {"objective": "denoiser", "settings": {"steps": 10}, "save_every": 4}
    folder = tmp_path / "run"
    assert server.train(folder, **options | {"settings": {"steps": 10}})[0] == 0
    size = state_path(folder, 8).stat().st_size
    broken = tmp_path / "broken"
    code, line = server.train(broken, largest_file=size - 1000, **options)
    assert code == 1
    assert line.startswith("DiskFullError") or "No state had been saved" in line
    assert f"in {str(broken)!r}" in line
    assert not saved_steps(broken)
    code, line = server.train(broken, restarted=True, **options)
    assert code == 0, line
    assert result(broken) == result(folder)
