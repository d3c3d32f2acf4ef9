"""Trained weights, each with a card that says where they come from, and their verified loading.

A checkpoint is two files side by side: `NAME.safetensors` holds the weights in half precision, and
`NAME.json`, the card, holds the recipe, the data and its hash, the steps, the seed, the time, the
device, the package versions, the metrics and the SHA-256 of the weights. A pickle is never read:
loading one can run any code it likes, whereas a safetensors file is a table of numbers and nothing
else.
"""

import hashlib
import importlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialise
from torch import nn

from companion.errors import unknown_name
from companion.files import write_atomically

__all__ = [
    "Card",
    "CheckpointError",
    "checkpoint_names",
    "load_card",
    "load_checkpoint",
    "save_checkpoint",
]

FORMAT = 1
SHIPPED = Path(__file__).parent

Metrics = Mapping[str, float]


class CheckpointError(ValueError):
    """A checkpoint that is not what its card says, or is no checkpoint at all."""


def package_versions() -> dict[str, str]:
    """Returns the versions that a rerun of the training would have to match."""
    names = ("companion", "torch", "numpy", "safetensors")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


@dataclass(frozen=True)
class Card:
    """What is known about a checkpoint.

    Attributes:
        name: the checkpoint's name, also its file's stem.
        model: the full path of the network's class, such as "companion.metrics.digit_cnn.DigitCNN".
        config: the keyword arguments of that class.
        recipe: the recipe's name under "name", and its settings.
        data: the training set's name, size and content hash, and what was held out of it.
        steps: optimisation steps.
        seed: the seed of the training.
        seconds: wall-clock time of the training.
        device: where it ran.
        metrics: what was measured after training, on the weights as stored.
        packages: versions of the packages that trained it.
        parameters: number of trainable numbers.
        sha256: hash of the weights' file, hexadecimal.
        format: version of this layout.
    """

    name: str
    model: str
    config: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any]
    steps: int
    seed: int
    seconds: float
    device: str
    metrics: dict[str, Any]
    packages: dict[str, str] = field(default_factory=package_versions)
    parameters: int = 0
    sha256: str = ""
    format: int = FORMAT


def checkpoint_names() -> tuple[str, ...]:
    """Returns the names of the checkpoints that ship with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.safetensors")))


def _weights_path(name: str | Path) -> Path:
    """Turns a shipped checkpoint's name, or the path of a file, into the path of the weights."""
    text = os.fspath(name)
    if isinstance(name, Path) or "/" in text or os.sep in text or text.endswith(".safetensors"):
        path = Path(name)
        if path.suffix == ".json":
            path = path.with_suffix(".safetensors")
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint file {str(path)!r}.")
        return path
    if text not in checkpoint_names():
        raise unknown_name(
            "checkpoint",
            text,
            checkpoint_names(),
            "A path to a .safetensors file with its .json card beside it works too.",
        )
    return SHIPPED / f"{text}.safetensors"


def half_precision(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the network's state with every floating-point tensor in float16, on the CPU.

    Raises:
        CheckpointError: if a weight is not finite, or becomes so in half precision (above 65,504).
    """
    state = {}
    for key, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.is_floating_point():
            tensor = tensor.half()
            if not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"weight {key!r} has values that float16 cannot hold (NaN, infinite or beyond "
                    "65,504). Train with a smaller learning rate, or rescale that layer."
                )
        state[key] = tensor
    return state


def save_checkpoint(model: nn.Module, card: Card, directory: str | Path) -> Card:
    """Writes `NAME.safetensors` and `NAME.json` into a directory, each of them atomically.

    Args:
        model: the trained network.
        card: its card; `parameters` and `sha256` are filled in here.
        directory: where to; it is created if need be.

    Returns:
        The completed card.

    Raises:
        CheckpointError: if the card names another class than the network's, or a weight does not
            fit into half precision.
    """
    actual = f"{type(model).__module__}.{type(model).__qualname__}"
    if card.model != actual:
        raise CheckpointError(
            f"the card names the class {card.model!r}, but the network is a {actual!r}."
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = serialise(half_precision(model), metadata={"format": "pt"})
    card = replace(
        card,
        parameters=sum(p.numel() for p in model.parameters()),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    text = json.dumps(asdict(card), indent=2, allow_nan=False) + "\n"
    write_atomically(directory / f"{card.name}.safetensors", content)
    write_atomically(directory / f"{card.name}.json", text.encode())
    return card


def _parse_card(path: Path) -> Card:
    if not path.is_file():
        raise CheckpointError(
            f"the card {path.name!r} is missing beside {path.with_suffix('.safetensors').name!r}. Without it "
            "neither the model nor the file's hash is known; get both files together."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the card {path.name!r} is not a JSON file: {error}.") from error
    known = {f.name for f in fields(Card)}
    if not isinstance(content, dict) or set(content) != known:
        found = set(content) if isinstance(content, dict) else set()
        raise CheckpointError(
            f"{path.name!r} is not a checkpoint's card: missing {sorted(known - found)}, "
            f"unexpected {sorted(found - known)}."
        )
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"the card {path.name!r} has format {content['format']!r}, this companion reads {FORMAT}. "
            "Update the package, or fetch the checkpoint that goes with it."
        )
    return Card(**content)


def load_card(name: str | Path) -> Card:
    """Reads a checkpoint's card, by the checkpoint's name or its path.

    Raises:
        ValueError: if no checkpoint has this name; the message suggests the nearest.
        FileNotFoundError: if the path leads nowhere.
        CheckpointError: if the card is missing or is not one.
    """
    return _parse_card(_weights_path(name).with_suffix(".json"))


def _require_safetensors(content: bytes, path: Path) -> None:
    """Refuses foreign and truncated files by their first bytes, before anything parses them."""
    if content[:2] == b"PK" or (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05"):
        raise CheckpointError(
            f"{path.name!r} holds a pickle (as torch.save writes it). Loading a pickle can run any code, so "
            "it is refused; convert it to safetensors where you trust its origin."
        )
    header = int.from_bytes(content[:8], "little")
    if len(content) < 8 or content[8:9] != b"{" or header > 100_000_000:
        raise CheckpointError(
            f"{path.name!r} is not a safetensors file: it has no header ({len(content):,} bytes in all)."
        )
    try:
        table = json.loads(content[8 : 8 + header])
        ends = [entry["data_offsets"][1] for key, entry in table.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path.name!r} is not a safetensors file, or is cut within its header: {error}."
        ) from error
    expected = 8 + header + max(ends, default=0)
    if len(content) != expected:
        raise CheckpointError(
            f"{path.name!r} is {'truncated' if len(content) < expected else 'too long'}: its header announces "
            f"{expected:,} bytes, the file has {len(content):,}. Fetch it again."
        )


def _verified_weights(path: Path, card: Card) -> dict[str, torch.Tensor]:
    content = path.read_bytes()
    _require_safetensors(content, path)
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise CheckpointError(
            f"{path.name!r} was altered: its SHA-256 is {found}, its card says {card.sha256}. "
            "Fetch both files again."
        )
    try:
        return parse_safetensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path.name!r} is not a valid safetensors file: {error}.") from error


def _build(card: Card) -> nn.Module:
    """Builds the network that the card names; only this package's own network classes qualify."""
    module_name, _, class_name = card.model.rpartition(".")
    if module_name.split(".")[0] != "companion":
        raise CheckpointError(
            f"the card of {card.name!r} names the class {card.model!r}; only classes of companion are built."
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"the card of {card.name!r} names {card.model!r}, which this companion does not have: {error}."
        ) from error
    # The class must be defined there: a module's imports would open the door to other packages.
    if (
        not isinstance(found, type)
        or not issubclass(found, nn.Module)
        or found.__module__ != module_name
    ):
        raise CheckpointError(
            f"the card of {card.name!r} names {card.model!r}, which is no network class."
        )
    try:
        return found(**card.config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the card of {card.name!r} has a config that {card.model} refuses: {error}."
        ) from error


def load_checkpoint(name: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Builds the network that a checkpoint's card names and loads its verified weights.

    Args:
        name: a shipped checkpoint's name, such as "digit-cnn", or the path of a `.safetensors` file
            whose card lies beside it.
        device: where the network goes.

    Returns:
        The network in float32 and in evaluation mode.

    Raises:
        ValueError: if no checkpoint has this name; the message suggests the nearest.
        FileNotFoundError: if the path leads nowhere.
        CheckpointError: if a file is foreign, a pickle, truncated or altered, if the card is
            missing or wrong, or if the weights do not fit the network.
    """
    path = _weights_path(name)
    card = _parse_card(path.with_suffix(".json"))
    weights = _verified_weights(path, card)
    model = _build(card)
    try:
        model.load_state_dict(weights)  # copies, and so casts half precision to the network's own
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path.name!r} do not fit {card.model}: {error}."
        ) from error
    return model.to(device).eval()
