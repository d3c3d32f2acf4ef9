"""The recorded tasks from image to image of chapter 6: what the tool writes, and that the committed record is whole."""

import base64
import io
import json
from itertools import product

import image_tasks
import numpy as np
import pytest
import torch
from PIL import Image

from companion import data
from companion.gan import TASKS

SMALL = {"steps": 2, "generator_width": 2, "discriminator_width": 2, "batch_size": 4}


def test_every_training_is_made_once_and_the_same_twice(tmp_path, monkeypatch):
    path = tmp_path / "tasks.json"
    image_tasks.measure(["completion"], [1], path, **SMALL)
    found = json.loads(path.read_text())
    assert found["settings"] == image_tasks.SETTINGS | SMALL
    ways = [*image_tasks.UNTRAINED, *image_tasks.WAYS]
    assert [t["way"] for t in found["trainings"]] == ways
    answer = image_tasks.trained("completion", "both", 1, **SMALL)
    wanted = image_tasks.pairs("completion")[1]
    assert image_tasks.measured(answer, wanted).items() <= found["trainings"][-1].items()
    monkeypatch.setattr(image_tasks, "write_atomically", lambda *_: pytest.fail("made again"))
    image_tasks.measure(["completion"], [1], path, **SMALL)


def test_other_settings_and_other_code_begin_a_new_record(tmp_path, monkeypatch):
    path = tmp_path / "tasks.json"
    image_tasks.measure(["style"], [0], path, **SMALL)
    settings = image_tasks.SETTINGS | SMALL
    assert len(image_tasks.record(path, settings)["trainings"]) == 5
    assert not image_tasks.record(path, image_tasks.SETTINGS)["trainings"]
    monkeypatch.setattr(image_tasks, "measured", image_tasks.sheet)
    assert not image_tasks.record(path, settings)["trainings"]


def test_a_network_without_training_is_the_one_that_training_starts_from():
    untrained = image_tasks.trained("denoising", "untrained", 2, **SMALL)
    assert torch.equal(untrained, image_tasks.trained("denoising", "untrained", 2, **SMALL))
    still = image_tasks.trained("denoising", "error only", 2, **SMALL | {"learning_rate": 1e-12})
    assert torch.allclose(untrained, still, atol=1e-5)
    moved = image_tasks.trained("denoising", "error only", 2, **SMALL)
    assert not torch.allclose(untrained, moved, atol=1e-5)


def sheet_of(text: str) -> torch.Tensor:
    """Eight images "n h w" of bytes from a recorded picture."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return torch.stack(torch.from_numpy(np.array(picture)).split(28, dim=1))


def test_a_sheet_holds_the_answers():
    wanted = image_tasks.pairs("completion")[1]
    shown = data.to_uint8(wanted[image_tasks.SHEET])[:, 0]
    assert len(shown) == 8
    assert torch.equal(sheet_of(image_tasks.sheet(wanted)), shown)


def test_the_wanted_images_themselves_are_perfect():
    wanted = image_tasks.pairs("style")[1]
    found = image_tasks.measured(wanted, wanted)
    assert found["FID"] == pytest.approx(0, abs=1e-3)
    assert found["sharpness"] == pytest.approx(1)
    worse = image_tasks.measured((wanted + 0.2 * torch.randn_like(wanted)).clamp(-1, 1), wanted)
    assert worse["FID"] > 0.1


def test_the_committed_record_is_whole_and_of_today_s_code():
    found = image_tasks.record(image_tasks.RECORD, image_tasks.SETTINGS)["trainings"]
    assert found, "the code has changed: python book/tools/image_tasks.py"
    ways = (*image_tasks.UNTRAINED, *image_tasks.WAYS)
    wanted = product(image_tasks.SEEDS, TASKS, ways)
    assert [(t["seed"], t["task"], t["way"]) for t in found] == list(wanted)
    for t in found:
        assert ("sheet" in t) is ((t["task"], t["seed"]) == image_tasks.SHOWN)


@pytest.mark.parametrize("way", image_tasks.UNTRAINED)
def test_what_needs_no_training_is_recorded_right(way):
    """The committed numbers and pictures of the two ways that take no time to repeat."""
    found = json.loads(image_tasks.RECORD.read_text())["trainings"]
    (entry,) = (t for t in found if (t["task"], t["seed"], t["way"]) == (*image_tasks.SHOWN, way))
    given, wanted = image_tasks.pairs("completion")
    answer = given if way == "nothing" else image_tasks.trained("completion", way, 0)
    for key, value in image_tasks.measured(answer, wanted).items():
        assert entry[key] == pytest.approx(value, rel=0.01)
    away = sheet_of(entry["sheet"]).int() - data.to_uint8(answer[image_tasks.SHEET])[:, 0].int()
    assert away.abs().max() <= 2
