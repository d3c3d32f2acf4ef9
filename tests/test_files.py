"""Files that are whole or not there."""

import os

import pytest

from companion.files import replacing, write_atomically


def test_a_file_takes_the_place_of_another(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    with replacing(path) as file:
        file.write(b"two")
        assert path.read_bytes() == b"one", "until it is complete"
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


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


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "file", b"")
