"""Pictures: pixels, words and refusals."""

import base64
import io
import re

import jaxtyping
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


@pytest.fixture
def unchecked(monkeypatch):
    """As in a notebook, where types are not checked at each call."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64]
)
@pytest.mark.parametrize("titles", [None, ["a", "b"]])
def test_values_without_a_known_range_are_refused(dtype, titles):
    with pytest.raises(TypeError, match=str(dtype)):
        image_grid(torch.ones(2, 1, 4, 4).to(dtype), titles=titles, **WORDS)
    assert plt.get_fignums() == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_every_precision_are_drawn_alike(dtype):
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).to(dtype)
    assert np.asarray(tile(images, columns=3))[0, [0, 3, 6]].tolist() == [0, 128, 255]


@pytest.mark.parametrize("titles", [None, ["a", "b"]])
def test_values_that_are_no_numbers_are_refused(titles):
    with pytest.raises(ValueError, match="NaN"):
        image_grid(torch.full((2, 1, 4, 4), float("nan")), titles=titles, **WORDS)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("columns", [0, -1])
@pytest.mark.parametrize("titles", [None, ["a", "b"]])
def test_no_columns_are_refused(columns, titles):
    with pytest.raises(ValueError, match="columns"):
        image_grid(torch.zeros(2, 1, 4, 4), titles=titles, columns=columns, **WORDS)


@pytest.mark.parametrize("blank", ["alt", "caption"])
def test_refused_figures_are_closed(blank):
    fig, _ = plt.subplots()
    with pytest.raises(ValueError, match=blank):
        figure(fig, **{**WORDS, blank: " "})
    assert plt.get_fignums() == []


def test_a_figure_that_cannot_be_drawn_is_closed():
    fig, axis = plt.subplots()
    axis.set_title("$\\nocommand$")
    with pytest.raises(ValueError, match="nocommand"):
        figure(fig, **WORDS)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("settings", [{"alt": ""}, {"log_y": True, "title": "$\\nocommand$"}])
def test_refused_curves_are_closed(settings):
    with pytest.raises(ValueError, match=r"alt|nocommand"):
        curves({"a": ([0, 1], [0, 1])}, xlabel="x", ylabel="y", **{**WORDS, **settings})
    assert plt.get_fignums() == []


@pytest.mark.usefixtures("unchecked")
def test_unknown_kind_is_named_and_its_figure_closed():
    fig, _ = plt.subplots()
    with pytest.raises(ValueError, match="kind of picture 'photo'"):
        figure(fig, kind="photo", **WORDS)
    assert plt.get_fignums() == []
