"""The interactive figure, without a browser; tests/book drags it in one."""

import json
import re

import matplotlib.pyplot as plt
import pytest
import torch

from companion.display import slider

WORDS = {"name": "Level", "alt": "A grey square", "caption": "It brightens."}


def grey(level: float) -> torch.Tensor:
    return torch.full((1, 4, 4), float(level))


def payload(html: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json">(.*?)</script>', html, re.S).group(1)
    )


def test_one_frame_for_each_value():
    made = slider(grey, [-1, 0, 1], start=1, format="{:+d}", **WORDS)
    data = payload(made.html)
    assert data["labels"] == ["-1", "+0", "+1"]
    assert len(set(data["frames"])) == 3
    assert f'<img src="{data["frames"][1]}"' in made.html
    assert 'alt="A grey square. Level: +0."' in made.html


def test_label_holds_its_input():
    html = slider(grey, [0, 1], **WORDS).html
    (label,) = re.findall(r"<label>(.*?)</label>", html)
    assert label.startswith("<span>Level</span>")
    assert '<input type="range" min="0" max="1"' in label


def test_the_same_slider_may_stand_on_a_page_twice():
    """No id, so none twice; and the same drawing gives the same bytes."""
    one, two = slider(grey, [0, 1], **WORDS), slider(grey, [0, 1], **WORDS)
    assert one.html == two.html
    assert not re.search(r"\b(id|for|name)=|getElementById", one.html)


@pytest.mark.parametrize(
    ("draws", "asked", "kind"),
    [
        ("tensor", None, "image"),
        ("tensor", "plot", "plot"),
        ("figure", None, "plot"),
        ("figure", "image", "image"),
    ],
)
def test_images_keep_their_colours_on_a_dark_page(draws, asked, kind):
    def draw(value):
        return grey(value) if draws == "tensor" else plt.subplots(figsize=(2, 2))[0]

    made = slider(draw, [0, 1], kind=asked, **WORDS)
    assert f'class="cmp-figure cmp-slider cmp-{kind}"' in made.html


def test_words_cannot_end_the_script():
    html = slider(grey, [0, 1], name="Level", alt="</script><b>", caption="c").html
    assert html.count("</script>") == 2
    assert payload(html)["alt"] == "</script><b>."


def test_figures_are_closed():
    def draw(value):
        fig, axis = plt.subplots(figsize=(3, 2))
        axis.plot([0, value])
        return fig

    slider(draw, [1, 2], **WORDS)
    assert plt.get_fignums() == []


def test_widget_draws_anew():
    drawn = []

    def draw(value):
        drawn.append(value)
        return grey(value)

    box = slider(draw, [0.0, 0.5, 1.0], **WORDS).widget()
    control, image, _ = box.children
    before = image.value
    control.value = 2
    assert drawn == [0.0, 0.5, 1.0, 1.0]
    assert image.value != before


def test_page_form_needs_no_kernel():
    bundle = slider(grey, [0, 1], **WORDS)._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}


@pytest.mark.parametrize("values", [[1], list(range(25))])
def test_too_few_or_too_many_values(values):
    with pytest.raises(ValueError, match=f"{len(values)} values"):
        slider(grey, values, **WORDS)


def test_bad_start():
    with pytest.raises(ValueError, match="start=2"):
        slider(grey, [0, 1], start=2, **WORDS)


def test_unusable_drawing():
    with pytest.raises(TypeError, match="str"):
        slider(lambda v: "picture", [0, 1], **WORDS)


def test_unknown_kind():
    with pytest.raises((ValueError, TypeError), match="kind"):
        slider(grey, [0, 1], kind="photo", **WORDS)


@pytest.mark.parametrize("fault", ["raises", "returns"])
def test_figures_of_a_refused_slider_are_closed(fault):
    kept, _ = plt.subplots()  # the reader's own

    def draw(value):
        fig, axis = plt.subplots()
        if value == 2 and fault == "raises":
            raise KeyError("no such level")
        return axis if value == 2 else fig

    with pytest.raises((KeyError, TypeError)):
        slider(draw, [1, 2], **WORDS)
    assert plt.get_fignums() == [kept.number]
    plt.close(kept)
