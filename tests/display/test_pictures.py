"""Pictures: pixels, words and refusals."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from companion.display import curves, figure, image_grid
from companion.display.pictures import tile

WORDS = {"alt": "What it shows", "caption": "What to see"}


def decode(html: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    ]


def test_tile_puts_each_image_in_its_place():
    images = torch.arange(5, dtype=torch.uint8).mul(10).view(5, 1, 1, 1).expand(5, 1, 3, 4)
    sheet = np.asarray(tile(images, columns=2))
    assert sheet.shape == (3 * 3 + 2 * 2, 4 * 2 + 2)
    assert (sheet[0:3, 0:4] == 0).all()
    assert (sheet[0:3, 6:10] == 10).all()
    assert (sheet[10:13, 0:4] == 40).all()
    assert (sheet[10:13, 6:10] == 128).all()  # no sixth image


def test_floats_map_from_minus_one_to_one():
    images = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    sheet = np.asarray(tile(images, columns=2))
    assert sheet[0, 0] == 0
    assert sheet[0, -1] == 255


def test_grid_stores_pixels_once_and_zooms_on_the_page(generator):
    images = torch.rand(16, 1, 28, 28, generator=generator) * 2 - 1
    picture = image_grid(images, **WORDS)
    (image,) = decode(picture.html)
    assert image.size == (8 * 30 - 2, 2 * 30 - 2)
    assert "pixelated" in picture.html
    assert int(re.search(r'width="(\d+)"', picture.html).group(1)) > image.size[0]


def test_colour_images_keep_their_colours():
    red = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red[:, 0] = 200
    (image,) = decode(image_grid(red, **WORDS).html)
    assert image.convert("RGB").getpixel((4, 4)) == (200, 0, 0)


def test_titles_need_their_images():
    with pytest.raises(ValueError, match="1 titles for 2 images"):
        image_grid(torch.zeros(2, 1, 4, 4), titles=["one"], **WORDS)


def test_titled_grid_is_one_picture():
    picture = image_grid(torch.zeros(3, 1, 8, 8), titles=["a", "b", "c"], columns=2, **WORDS)
    assert len(decode(picture.html)) == 1
    assert plt.get_fignums() == []


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 4, 8, 8)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(Exception, match=r"shape|type"):
        image_grid(torch.zeros(shape), **WORDS)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        image_grid(torch.zeros(0, 1, 8, 8), **WORDS)


@pytest.mark.parametrize("missing", ["alt", "caption"])
def test_words_are_required(missing):
    with pytest.raises(ValueError, match=missing):
        image_grid(torch.zeros(1, 1, 8, 8), **{**WORDS, missing: " "})


def test_figure_closes_and_has_its_size():
    fig, _ = plt.subplots(figsize=(4, 2))
    picture = figure(fig, **WORDS)
    assert plt.get_fignums() == []
    assert 'width="384"' in picture.html
    assert decode(picture.html)[0].size == (576, 288)
    assert "cmp-plot" in picture.html


def test_the_same_drawing_gives_the_same_bytes():
    def draw():
        return curves({"a": ([0, 1], [0, 1])}, xlabel="x", ylabel="y", **WORDS).html

    assert draw() == draw()


@pytest.mark.parametrize("values", [([0, 1],), ([0, 1], [0, 1, 2]), ([[0, 1]], [[0, 1]])])
def test_misshapen_series_are_named(values):
    with pytest.raises(ValueError, match="'loss'"):
        curves({"loss": values}, xlabel="x", ylabel="y", **WORDS)
    assert plt.get_fignums() == []
