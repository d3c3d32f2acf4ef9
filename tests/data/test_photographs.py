"""Photographs that ship with scikit-image."""

import numpy as np
import pytest
import torch
from PIL import Image

from companion import data

SIZES = {
    "astronaut": (512, 512),
    "chelsea": (300, 451),
    "coffee": (400, 600),
    "hubble": (872, 1000),
    "motorcycle": (500, 741),
    "retina": (1411, 1411),
    "rocket": (427, 640),
}


def test_everyday_scenes_by_default():
    photos = data.photographs()
    assert list(photos) == ["astronaut", "chelsea", "coffee", "motorcycle", "rocket"]
    for name, photo in photos.items():
        assert photo.dtype == torch.uint8
        assert photo.shape == (3, *SIZES[name])
        assert photo.float().std() > 20


def test_by_name():
    assert list(data.photographs(["retina", "hubble"])) == ["retina", "hubble"]
    assert data.photographs("hubble")["hubble"].shape == (3, *SIZES["hubble"])


def test_same_pixels_as_scikit_image():
    from skimage.data import chelsea

    assert np.array_equal(
        data.photographs(["chelsea"])["chelsea"].permute(1, 2, 0).numpy(), chelsea()
    )


def test_each_caller_gets_a_copy():
    data.photographs(["coffee"])["coffee"].zero_()
    assert data.photographs(["coffee"])["coffee"].any()


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown photograph 'chelsey'\. Did you mean 'chelsea'"):
        data.photographs(["chelsey"])


def test_missing_file_is_named(monkeypatch):
    import sys

    module = sys.modules["companion.data.photographs"]
    monkeypatch.setitem(module.FILES, "ghost", "ghost.png")
    with pytest.raises(OSError, match=r"ghost\.png.*Reinstall"):
        data.photographs(["ghost"])


def test_grey_files_would_come_out_as_rgb(monkeypatch, tmp_path):
    import sys

    module = sys.modules["companion.data.photographs"]
    Image.new("L", (5, 4), 7).save(tmp_path / "grey.png")
    monkeypatch.setitem(module.FILES, "grey", str(tmp_path / "grey.png"))
    assert data.photographs(["grey"])["grey"].tolist() == torch.full((3, 4, 5), 7).tolist()
