"""The recorded tasks from image to image of chapter 6: what the tool writes, and that the committed record is whole."""

import json
from itertools import product

import image_tasks
import pytest
import torch

from companion.gan import TASKS

SMALL = {"steps": 2, "generator_width": 2, "discriminator_width": 2, "batch_size": 4}


def test_every_training_is_made_once_and_the_same_twice(tmp_path, monkeypatch):
    path = tmp_path / "tasks.json"
    image_tasks.measure(["completion"], [1], path, **SMALL)
    found = json.loads(path.read_text())
    assert found["settings"] == image_tasks.SETTINGS | SMALL
    assert [t["way"] for t in found["trainings"]] == ["nothing", *image_tasks.WAYS]
    answer = image_tasks.trained("completion", "both", 1, **SMALL)
    wanted = image_tasks.pairs("completion")[1]
    assert image_tasks.measured(answer, wanted).items() <= found["trainings"][-1].items()
    monkeypatch.setattr(image_tasks, "trained", lambda *_, **__: pytest.fail("trained again"))
    image_tasks.measure(["completion"], [1], path, **SMALL)


def test_other_settings_begin_a_new_record(tmp_path):
    path = tmp_path / "tasks.json"
    image_tasks.measure(["style"], [0], path, **SMALL)
    assert not image_tasks.record(path, image_tasks.SETTINGS)["trainings"]


def test_the_wanted_images_themselves_are_perfect():
    wanted = image_tasks.pairs("style")[1]
    found = image_tasks.measured(wanted, wanted)
    assert found["FID"] == pytest.approx(0, abs=1e-3)
    assert found["sharpness"] == pytest.approx(1)
    worse = image_tasks.measured((wanted + 0.2 * torch.randn_like(wanted)).clamp(-1, 1), wanted)
    assert worse["FID"] > 0.1


def test_the_committed_record_is_whole():
    found = image_tasks.record(image_tasks.RECORD, image_tasks.SETTINGS)["trainings"]
    wanted = product(image_tasks.SEEDS, TASKS, ("nothing", *image_tasks.WAYS))
    assert {(t["seed"], t["task"], t["way"]) for t in found} == set(wanted)
    assert len(found) == len(image_tasks.SEEDS) * len(TASKS) * 4
