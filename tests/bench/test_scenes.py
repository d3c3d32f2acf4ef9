"""What a training set of captioned scenes costs, beside painting them one by one."""

import time

import numpy as np
from PIL import Image

from companion import data


def seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def painted(digits: np.ndarray, count: int) -> list[Image.Image]:
    """Two digits each, resized and pasted by Pillow: a scene is cropped, coloured, captioned too."""
    found = []
    for i in range(count):
        scene = Image.new("RGB", (32, 32))
        for k in (0, 1):
            digit = Image.fromarray(digits[(2 * i + k) % len(digits)]).resize((14, 14))
            scene.paste(Image.merge("RGB", [digit] * 3), (1 + 16 * k, 9))
        found.append(scene)
    return found


def test_scenes_are_made_in_at_most_the_time_of_painting_them_by_hand(capsys):
    digits = data.load("digits").images[:, 0].numpy()
    data.load("scenes", "test")  # imports and reading are not what is timed
    few = 5_000
    ours = min(seconds(lambda: data.load("scenes")) for _ in range(2)) / 50_000
    theirs = min(seconds(lambda: painted(digits, few)) for _ in range(2)) / few
    with capsys.disabled():
        print(f"\nA scene: {ours * 1e6:.0f} µs, by Pillow {theirs * 1e6:.0f} µs")
    assert ours <= theirs
    assert len(data.load("scenes")) == 50_000
