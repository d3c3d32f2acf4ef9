"""Files that are whole or not there, whatever happens while they are written, and locks on them."""

import contextlib
import errno
import importlib
import os
import platform
import re
import secrets
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO


def _module(name: str) -> ModuleType | None:
    """Returns a module that only some systems have, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl = _module("fcntl")  # None on Windows

# The ending of a file that is being written; the name before it is unpredictable.
WRITING = re.compile(r"\.[0-9a-f]{16}\.tmp")
# Seconds between two looks at a lock that another process holds.
LOOK_AGAIN = 0.05
# What systems answer where a file system (some network ones) knows no locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}
# On Windows a locked byte cannot be read by others, so it lies far behind the text.
LOCKED_BYTE = 1 << 30


class FileLockedError(OSError):
    """Another process holds a lock.

    Attributes:
        path: the lock file.
        pid: the number of the process that holds it, or None if that is not known.
    """

    def __init__(self, message: str, path: Path, pid: int | None) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid


# --- Whole files ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` once it is complete and on the disk.

    A reader sees the old file or the new one, never half of one, even if we are killed here: what is written
    goes to a hidden file beside it, which is renamed at the end. If the body raises, `path` stays as it was.
    What a killed process left half-written is removed by the next that writes the same file.

    The new file has the permissions of the old one, or those that the user's umask gives to a new file. If
    `path` is a symbolic link, the link is replaced, not what it points to.

    Args:
        path: the file to write; its folder must exist.

    Raises:
        OSError: as the system reports it, for instance a full disk.
    """
    _remove_left_over(path)
    file, temporary = _hidden_file(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Renamed while it is still locked, or another process could take it for left over. Windows
            # renames no open file.
            if os.name != "nt":
                _rename(temporary, path)
        if os.name == "nt":
            _rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a whole file as `replacing` does."""
    with replacing(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Puts a folder's list of names on the disk, without which a renamed file can vanish with the power."""
    if os.name == "nt":
        return  # Windows opens no folders, and its file systems keep this order by themselves.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Makes errors of the system name the file that was asked for; nobody knows the hidden one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _rename(temporary: Path, path: Path) -> None:
    with _blaming(path):
        os.replace(temporary, path)


def _hidden_file(path: Path) -> tuple[BinaryIO, Path]:
    """Creates the hidden file beside `path`, with the permissions that `path` shall have, and locks it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    mode = _permissions(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        with _blaming(path):
            # O_EXCL follows no link, and the system applies the umask.
            handle = os.open(temporary, flags, 0o666 if mode is None else 0o600)
        try:
            _lock(handle, wait=True)
            if os.name == "nt" or os.fstat(handle).st_nlink:
                if mode is not None:
                    os.chmod(temporary, mode)
                return os.fdopen(handle, "wb"), temporary
        except BaseException:
            os.close(handle)
            temporary.unlink(missing_ok=True)
            raise
        os.close(handle)  # another process took it for left over before it was locked


def _permissions(path: Path) -> int | None:
    """The permissions of the file that is there, or None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return stat.S_IMODE(found.st_mode) & 0o777 if stat.S_ISREG(found.st_mode) else None


def _remove_left_over(path: Path) -> None:
    """Removes half-written files of `path` whose process is dead: the lock of a dead process is free."""
    if fcntl is None:
        return
    start = f".{path.name}"
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(start) and WRITING.fullmatch(entry.name[len(start) :]):
                with contextlib.suppress(OSError):
                    _remove_if_free(entry.path)


def _remove_if_free(path: str) -> None:
    assert fcntl is not None
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(handle)


# --- Locks ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, *, message: str, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock that one process at a time can have, and one thread of it.

    The lock is a small file that says whose it is, made here and removed at the end. The system frees it when its
    process dies, however it dies, so a file that was left behind locks nothing.

    Args:
        path: the lock file, such as `run/.lock`; its folder must exist.
        message: what it means that another process has the lock and what to do then, for the error.
        wait: how many seconds to wait for the other process; `math.inf` waits as long as it takes.

    Raises:
        FileLockedError: another process has it; the error tells the path and the process if it is known.
        OSError: the lock file cannot be written, or something that is no lock file stands in its place (a
            symbolic link, a folder, a second name of another file): it is neither followed nor changed.
    """
    until = time.monotonic() + wait
    while (handle := _try(path)) is None:
        if time.monotonic() >= until:
            raise _held_by_another(path, message)
        time.sleep(LOOK_AGAIN)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()} {platform.node()}\n".encode())
        yield
    finally:
        _free(handle, path)


def open_plain(path: Path, flags: int) -> int:
    """Opens a file, or makes it if `flags` say so, if it is a plain file with this one name.

    It follows no symbolic link in the file's own place and writes through no second name of another file, so
    whoever may write in the folder cannot make us change a file elsewhere.

    Args:
        path: the file.
        flags: as `os.open` takes them.

    Returns:
        The handle, to be closed by the caller.

    Raises:
        OSError: something else is there, or as the system reports it.
    """
    no_link = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    wrong = f"{path} is a symbolic link or no plain file. Remove it: nothing is written through it."
    if not no_link and path.is_symlink():
        raise OSError(wrong)
    try:
        handle = os.open(path, flags | no_link | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OSError(wrong) from error
        raise
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise OSError(wrong)
    return handle


def _try(path: Path) -> int | None:
    """Takes the lock and returns the handle that holds it, or None if another process has it."""
    handle = open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        # One who held the lock may have removed the file after we had opened it: then ours locks nothing.
        if _lock(handle, wait=False) and _is_still(handle, path):
            return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _lock(handle: int, *, wait: bool) -> bool:
    """Locks an open file and says whether that worked."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        elif not wait:
            _lock_on_windows(handle)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
        if not wait:
            warnings.warn(
                "this file system knows no locks: make sure that no other process writes here.",
                stacklevel=5,
            )
    return True


def _lock_on_windows(handle: int) -> None:
    msvcrt = importlib.import_module("msvcrt")
    os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
    msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    os.lseek(handle, 0, os.SEEK_SET)


def _is_still(handle: int, path: Path) -> bool:
    """Whether the open file is the one that the path names."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    return False


def _free(handle: int, path: Path) -> None:
    """Removes the lock file and frees the lock, in the order that the system can do."""
    if fcntl is None:
        os.close(handle)  # Windows removes no open file, and this one may be another's by now
        with contextlib.suppress(OSError):
            path.unlink()
        return
    if _is_still(handle, path):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        # Freed by name: a child process that we forked still has the file open.
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _held_by_another(path: Path, message: str) -> FileLockedError:
    try:
        handle = open_plain(path, os.O_RDONLY)
    except OSError:
        text = ""
    else:
        with os.fdopen(handle, "rb") as file:
            text = file.read(200).decode("utf-8", "replace")
    written = re.fullmatch(r"(\d{1,10}) ([\w.-]*)\n", text)
    who = f"process {written[1]}" + f" on {written[2]}" * bool(written[2]) if written else ""
    return FileLockedError(
        f"{message} ({path} is locked by {who or 'another process'}.)",
        path,
        int(written[1]) if written else None,
    )
