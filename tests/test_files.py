"""Files that are whole or not there, and locks that one process has."""

import contextlib
import errno
import math
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import types

import pytest

from companion import files
from companion.files import FileLockedError, locked, open_plain, replacing, write_atomically


@pytest.fixture
def umask():
    """Sets the umask and sets it back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_takes_the_place_of_another(tmp_path, umask):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    with replacing(path) as file:
        file.write(b"two")
        assert path.read_bytes() == b"one", "until it is complete"
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    write_atomically(tmp_path / "file", b"one")
    assert permissions(tmp_path / "file") == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444, 0o755])
def test_a_file_keeps_its_permissions(tmp_path, umask, mode):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    path.chmod(mode)
    with replacing(path) as file:
        (hidden,) = set(tmp_path.iterdir()) - {path}
        assert permissions(hidden) == mode, "while it is written, too"
        file.write(b"two")
    assert permissions(path) == mode
    assert path.read_bytes() == b"two"


def test_a_link_is_replaced_and_what_it_points_to_is_not_touched(tmp_path, umask):
    (tmp_path / "theirs").write_bytes(b"precious")
    (tmp_path / "file").symlink_to(tmp_path / "theirs")
    write_atomically(tmp_path / "file", b"mine")
    assert (tmp_path / "theirs").read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()
    assert permissions(tmp_path / "file") == 0o644


def test_a_link_planted_at_the_hidden_name_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "theirs").write_bytes(b"precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".file.{'0' * 16}.tmp").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"mine")
    assert (tmp_path / "theirs").read_bytes() == b"precious"


def test_an_error_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")

    def interrupted():
        with replacing(path) as file:
            file.write(b"half of t")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("none/file", FileNotFoundError),
        ("folder", IsADirectoryError),
        ("plain/file", NotADirectoryError),
        ("x" * 300, OSError),
    ],
)
def test_errors_name_the_file_that_was_asked_for(tmp_path, place, error):
    """And never the hidden one, whether it cannot be made or cannot take the file's place."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(error) as caught:
        write_atomically(tmp_path / place, b"")
    assert caught.value.filename == str(tmp_path / place)
    assert caught.value.filename2 is None
    assert ".tmp" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["folder", "plain"]


# --- Other processes --------------------------------------------------------------------------------------


@contextlib.contextmanager
def another_process(code, *arguments):
    """Runs Python in another process until it says "ready"; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


HALF_WRITTEN = """
    import pathlib, sys, time
    from companion.files import replacing
    with replacing(pathlib.Path(sys.argv[1])) as file:
        file.write(b"half")
        file.flush()
        print("ready", flush=True)
        time.sleep(60)
"""
HOLDING = """
    import pathlib, sys, time
    from companion.files import locked
    with locked(pathlib.Path(sys.argv[1]), message="Mine."):
        print("ready", flush=True)
        time.sleep(60)
"""
HOLDING_WITH_A_CHILD = """
    import os, pathlib, sys
    from companion.files import locked
    with locked(pathlib.Path(sys.argv[1]), message="Mine."):
        if os.fork() == 0:
            sys.stdin.read()  # until the test ends
            os._exit(0)
    print("ready", flush=True)
    os.wait()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    foreign = [f".other.{'0' * 16}.tmp", f".file.{'0' * 15}.tmp", ".file.part", "file.tmp"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"")
    with another_process(HALF_WRITTEN, path) as process:
        before = set(os.listdir(tmp_path))
        assert len(before) == len(foreign) + 1
        write_atomically(path, b"whole")
        assert set(os.listdir(tmp_path)) == before | {"file"}, "the other one is alive"
        process.send_signal(signal.SIGKILL)
        process.wait()
        write_atomically(path, b"whole again")
    assert sorted(os.listdir(tmp_path)) == sorted([*foreign, "file"])
    assert path.read_bytes() == b"whole again"


def test_many_at_a_time_write_one_file(tmp_path):
    path, contents = tmp_path / "file", [bytes([n]) * 100_000 for n in range(8)]

    def write(content):
        for _ in range(20):
            write_atomically(path, content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert path.read_bytes() in contents
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    path = tmp_path / ".lock"
    with another_process(HOLDING, path) as process:
        with (
            pytest.raises(FileLockedError, match=f"Wait.*process {process.pid}") as raised,
            locked(path, message="Wait."),
        ):
            pass
        assert raised.value.pid == process.pid
        assert raised.value.path == path
        assert str(path) in str(raised.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists(), "it died without a chance to remove it"
        with locked(path, message="Wait."):
            assert path.read_text().split()[0] == str(os.getpid())
    assert os.listdir(tmp_path) == []


def test_a_lock_is_freed_though_a_forked_child_lives_on(tmp_path):
    with another_process(HOLDING_WITH_A_CHILD, tmp_path / ".lock") as process:
        with locked(tmp_path / ".lock", message="Wait."):
            pass
        process.stdin.close()


def test_a_lock_is_for_one_thread_too_and_can_be_waited_for(tmp_path):
    path, inside, most = tmp_path / ".lock", [], []

    def work(n):
        with locked(path, message="Wait.", wait=math.inf):
            inside.append(n)
            time.sleep(0.01)
            most.append(len(inside))
            inside.remove(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    assert os.listdir(tmp_path) == []
    with locked(path, message="Wait."):
        start = time.monotonic()
        with pytest.raises(FileLockedError), locked(path, message="Wait.", wait=0.2):
            pass
        assert time.monotonic() - start >= 0.2


def test_a_lock_is_freed_by_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / ".lock", message="Wait."):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_where_a_file_system_has_no_locks_one_is_told_and_goes_on(tmp_path, monkeypatch):
    def refusing(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refusing)
    with (
        pytest.warns(UserWarning, match="knows no locks"),
        locked(tmp_path / ".lock", message="Wait."),
    ):
        write_atomically(tmp_path / "file", b"whole")
    assert os.listdir(tmp_path) == ["file"]


def test_locks_and_files_as_windows_has_them(tmp_path, monkeypatch):
    """Windows locks a byte of the file; its calls are imitated here, not its rules about open files."""
    flock, how = files.fcntl.flock, files.fcntl.LOCK_EX | files.fcntl.LOCK_NB
    windows = types.ModuleType("msvcrt")
    windows.LK_NBLCK = 2
    windows.locking = lambda handle, kind, size: flock(handle, how)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setattr(files, "fcntl", None)
    path = tmp_path / ".lock"
    with locked(path, message="Mine."):
        with pytest.raises(FileLockedError) as raised, locked(path, message="Mine."):
            pass
        assert raised.value.pid == os.getpid()
    write_atomically(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("text", [b"", b"-1 x\n", b"\xff" * 300, b"12\x1b[31m evil\n"])
def test_a_lock_file_that_tells_nothing_sensible(tmp_path, text):
    path = tmp_path / ".lock"
    with locked(path, message="Wait."):
        path.write_bytes(text)
        with (
            pytest.raises(FileLockedError, match="by another process") as raised,
            locked(path, message="Wait."),
        ):
            pass
        assert raised.value.pid is None


# --- Planted files ----------------------------------------------------------------------------------------


@pytest.fixture(params=["symlink", "dangling symlink", "hard link", "folder", "pipe"])
def planted(request, tmp_path):
    """Something that is no plain file of its own, and a file that must not be touched."""
    path, theirs = tmp_path / "in" / "planted", tmp_path / "theirs"
    path.parent.mkdir()
    theirs.write_bytes(b"precious")
    if request.param == "symlink":
        path.symlink_to(theirs)
    elif request.param == "dangling symlink":
        path.symlink_to(tmp_path / "made by us")
    elif request.param == "hard link":
        os.link(theirs, path)
    elif request.param == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    yield path
    assert theirs.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["in", "theirs"]
    assert os.listdir(path.parent) == ["planted"]


def test_a_lock_follows_nothing_that_was_planted(planted):
    with pytest.raises(OSError, match="no plain file"), locked(planted, message="Wait."):
        pass


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY])
def test_nothing_planted_is_opened(planted, flags):
    with pytest.raises(OSError, match="Remove it"):
        open_plain(planted, flags)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(FileNotFoundError), locked(tmp_path / "none" / ".lock", message="Wait."):
        pass
