"""Natural colour photographs that are on every machine with scikit-image: no download."""

import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from companion.errors import unknown_name

# All are in scikit-image's wheel. "retina", "rocket" and "hubble" were stored as JPEG and carry its traces, so
# a study of compression starts from the others.
FILES = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "hubble": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}

# Scenes of the everyday world, which is what `photographs()` returns. The deep sky and the inside of an eye are
# photographs too, but mostly black; ask for them by name.
EVERYDAY = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")


def photographs(names: Iterable[str] | None = None) -> dict[str, UInt8[Tensor, "3 h w"]]:
    """Returns natural RGB photographs as bytes, in the order channel, row, column.

    Their sizes (rows × columns): astronaut 512×512, chelsea (a cat) 300×451, coffee 400×600, motorcycle
    500×741, rocket 427×640; by name also hubble 872×1000 and retina 1411×1411.

    Args:
        names: which ones; all everyday scenes if not given.

    Raises:
        ValueError: there is no photograph of that name.
        OSError: the installed scikit-image lacks the file.
    """
    wanted = EVERYDAY if names is None else (names,) if isinstance(names, str) else tuple(names)
    return {name: torch.from_numpy(_pixels(name).copy()) for name in wanted}


@cache
def _pixels(name: str) -> np.ndarray:
    if name not in FILES:
        raise unknown_name("photograph", name, FILES)
    # Not through skimage.data, whose functions may try to download what they do not find.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise OSError(
            "the photographs live in scikit-image, which is missing: pip install scikit-image"
        )
    path = Path(spec.origin).parent / "data" / FILES[name]
    if not path.is_file():
        raise OSError(
            f"the installed scikit-image has no {path}, so the photograph {name!r} is missing. "
            "Reinstall it: pip install --force-reinstall scikit-image"
        )
    with Image.open(path) as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
