"""`companion sample`."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from companion.cli import DONE
from companion.cli.flags import UsageError, require_at_least_one, subjects_and_options
from companion.cli.output import require_free, write

if TYPE_CHECKING:
    import torch

    from companion.checkpoints import Card
    from companion.evaluation.evaluator import Sample
    from companion.randomness import PerImage


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What to draw, and where.

    Attributes:
        n: number of images.
        out: a picture of all of them side by side (.png, .jpg, .webp), or an array "n c h w" of bytes (.npy); by
            default CHECKPOINT.png.
        columns: images in a row of the picture.
        seed: of the samples; the same seed gives the same images.
        prompt: what to draw, in words, for a checkpoint that reads them: "a red three left of a blue seven".
        rerank: draws for each image, of which the model's judge keeps the one that goes best with the prompt.
        temperature: of models that draw token by token: below 1 likelier images, above 1 more varied ones.
        top_k: draw each token among so many likeliest ones only.
        top_p: draw each token among the fewest likeliest ones that have this probability together.
        batch_size: images at a time; it does not change the images.
        devices: processes that share the work; they do not change the images.
        accelerator: "auto" takes CUDA where there is a GPU.
        overwrite: write over a file that is there already.
        progress: show a bar also where standard error is no terminal.
    """

    n: int = 64
    out: Path | None = None
    columns: int = 8
    seed: int = 0
    prompt: str | None = None
    rerank: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    batch_size: int = 32
    devices: int = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    overwrite: bool = False
    progress: bool = False


ABOUT = """Draws images from a checkpoint.

CHECKPOINT is the name of one that ships (companion list lists them), the folder of a run, or the path of a .safetensors
file with its card beside it.

examples: companion sample runs/vae --n 64 --out grid.png
          companion sample dalle --prompt "a red three left of a blue seven" --n 4 --rerank 16"""

# The settings with which Pillow writes each kind of picture, and the longest side that its format allows.
PICTURES: dict[str, tuple[dict[str, Any], int]] = {
    ".png": ({"format": "PNG", "optimize": True}, 100_000),
    ".jpg": ({"format": "JPEG", "quality": 95}, 65_000),
    ".jpeg": ({"format": "JPEG", "quality": 95}, 65_000),
    ".webp": ({"format": "WEBP", "lossless": True}, 16_383),
}
MOST_PIXELS = 100_000_000  # of a picture: as many as `companion.data.folder` reads
MOST_BYTES = 8 * 2**30  # of an array


def run(arguments: Sequence[str]) -> int:
    """Runs `companion sample`."""
    prog = "companion sample CHECKPOINT"
    (name,), asked = subjects_and_options(SampleOptions(), arguments, prog, ABOUT)
    require_at_least_one(asked, "n", "columns", "batch_size", "devices", "rerank")

    from companion.checkpoints import load_card

    card = load_card(name)
    out = asked.out or Path(f"{card.name}.png")
    _require_room(card, asked, out)
    require_free(out, asked.overwrite)
    return _draw(name, card, asked, out)


def _require_room(card: "Card", asked: SampleOptions, out: Path) -> None:
    """Raises `UsageError` if the images are too many for a file of this kind."""
    channels, side = card.config.get("channels", 1), card.config.get("size", 28)
    ending = out.suffix.lower()
    if ending == ".npy":
        most = MOST_BYTES // (channels * side * side)
        if asked.n > most:
            raise UsageError(
                f"--n is at most {most:,} images of {channels}×{side}×{side} in one file, got {asked.n:,}; draw them "
                "in parts, each with another --seed."
            )
        return
    if ending not in PICTURES:
        raise UsageError(f"--out must end in {', '.join(PICTURES)} or .npy, got {str(out)!r}.")
    # Two pixels lie between the images.
    across = min(asked.n, asked.columns) * (side + 2) - 2
    down = math.ceil(asked.n / asked.columns) * (side + 2) - 2
    longest = PICTURES[ending][1]
    if max(across, down) > longest or across * down > MOST_PIXELS:
        raise UsageError(
            f"--n {asked.n:,} images, {asked.columns} in a row, make a picture of {across:,}×{down:,} pixels, too "
            f"large for {ending}; draw fewer, change --columns, or write an array: --out {out.stem}.npy."
        )


def _draw(name: str, card: "Card", asked: SampleOptions, out: Path) -> int:
    from companion.data import to_uint8
    from companion.evaluation import Evaluator
    from companion.evaluation.evaluator import Sampler
    from companion.recipes import load_assembled
    from companion.training import launch

    fabric = launch(asked.devices, 1, asked.accelerator, "32-true")
    network = load_assembled(name, fabric.device)
    if not isinstance(network, Sampler):
        raise UsageError(cannot_sample(card))
    evaluator = Evaluator(
        fabric,
        batch_size=asked.batch_size,
        seed=asked.seed,
        progress=asked.progress or None,
    )
    # Bytes at once, a quarter of the memory that floats would take.
    images = evaluator.draw(sampler(network, asked, card), asked.n, measure=to_uint8)
    if fabric.global_rank == 0:
        write(out, encoded(images, out, asked.columns))
        shape = f"{images.shape[2]}×{images.shape[3]}"
        print(f"{out}: {len(images)} images of {shape} from {card.name}, seed {asked.seed}")
    return DONE


def sampler(network: Any, asked: SampleOptions, card: "Card") -> "Sample":
    """Returns what draws images: a network's method, with what the command line asks of it.

    Raises:
        UsageError: if the network does not take that.
    """
    import inspect

    choices = {
        name: value
        for name in ("temperature", "top_k", "top_p")
        if (value := getattr(asked, name)) is not None
    }
    if asked.prompt is None:
        if asked.rerank > 1:
            raise UsageError(
                "--rerank chooses the draws that go best with a prompt; give --prompt too."
            )
        method, given = network.sample, choices
    elif not hasattr(network, "draw"):
        raise UsageError(
            f"{card.name!r} does not read prompts; leave --prompt out, or take a text-to-image model such as dalle."
        )
    else:
        network.check_prompt(asked.prompt, asked.rerank)
        prompt, given = asked.prompt, choices | {"rerank": asked.rerank}

        def method(n: int, source: "PerImage", **others: Any) -> "torch.Tensor":
            return network.draw([prompt] * n, source, **others)

        return partial(method, **given)
    for name in given:
        if name not in inspect.signature(method).parameters:
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{card.name!r} does not draw token by token, so {flag} means nothing to it; leave it out."
            )
    return partial(method, **given)


def cannot_sample(card: "Card") -> str:
    """Says that a network does not draw images, and which do."""
    import importlib

    from companion.checkpoints import checkpoint_names, load_card

    def can(name: str) -> bool:
        module, _, kind = load_card(name).model.rpartition(".")
        return hasattr(getattr(importlib.import_module(module), kind), "sample")

    able = [name for name in checkpoint_names() if can(name)]
    which = f"These can: {', '.join(able)}." if able else "None of the checkpoints that ship can."
    kind = card.model.rpartition(".")[2]
    return f"{card.name!r} (a network of the class {kind}) cannot draw images. {which}"


def encoded(images: "torch.Tensor", out: Path, columns: int) -> bytes:
    """Returns the content of a file of images."""
    buffer = io.BytesIO()
    if out.suffix.lower() == ".npy":
        import numpy as np

        np.save(buffer, images.numpy())
    else:
        from companion.display.pictures import tile

        tile(images, columns).save(buffer, **PICTURES[out.suffix.lower()][0])
    return buffer.getvalue()
