"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` once it is complete and on the disk.

    A reader sees the old file or the new one, never half of one, even if we are killed here: what is written
    goes to a hidden file beside it, which is renamed at the end. If the body raises, `path` stays as it was.

    Args:
        path: the file to write; its folder must exist.

    Raises:
        OSError: as the system reports it, for instance a full disk.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
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
