"""Five hundred damaged files of each format: the right data, or a documented error."""

import pytest

NAMES = ["images", "zip", "captions.jsonl", "IDX", "gz", "tar.gz", "tar in gz"]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(fuzz, name, tmp_path):
    outcomes = fuzz.attack(fuzz.FORMATS[name], 500, 0, tmp_path)
    assert outcomes["refused"] >= 20, "the changes are harmless"


def test_every_sound_file_is_read(fuzz, tmp_path):
    assert list(fuzz.FORMATS) == NAMES
    for name, kind in fuzz.FORMATS.items():
        for number, seed in enumerate(kind.seeds):
            place = tmp_path / f"{name}-{number}"
            place.mkdir()
            kind.read(kind.pack(seed), place)
