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


def test_label_belongs_to_the_input():
    html = slider(grey, [0, 1], **WORDS).html
    (target,) = re.findall(r'<label for="([^"]+)"', html)
    assert f'<input type="range" id="{target}"' in html
    assert 'max="1"' in html


def test_id_depends_on_the_frames_alone():
    one, two = slider(grey, [0, 1], **WORDS), slider(grey, [0, 1], **WORDS)
    other = slider(grey, [0, 0.5], **WORDS)
    assert one.html == two.html
    find = re.compile(r'id="(slider-[0-9a-f]{10})"')
    assert find.search(one.html).group(1) != find.search(other.html).group(1)


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
