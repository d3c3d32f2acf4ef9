"""Writing a network's weights beside their card, and reading them back, verified.

Weights are stored in float16, and in float32 where a tensor holds values that float16 cannot (above 65,504).
"""

import dataclasses
import functools
import hashlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialise
from torch import Tensor, nn

from companion.checkpoints.card import Card, CheckpointError, read_card, save_card, weights_path
from companion.devices import check_device
from companion.files import write_atomically

State = dict[str, Tensor]


# --- Saving ----------------------------------------------------------------------------------------------------------


def stored_state(model: nn.Module) -> State:
    """Returns the network's state as a checkpoint stores it, on the CPU: floats in float16 where their values fit.

    Measure a network after `network.load_state_dict(stored_state(network))`, so that the numbers are those of the
    weights that others will load.

    Raises:
        CheckpointError: if a weight is NaN or infinite, or beyond float32.
    """
    return {key: _as_stored(key, tensor) for key, tensor in model.state_dict().items()}


def _as_stored(key: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor.clone()
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            f"weight {key!r} holds NaN or infinite values: the training diverged. Train with a smaller learning rate."
        )
    for dtype in (torch.float16, torch.float32):
        stored = tensor.to(dtype, copy=True)
        if torch.isfinite(stored).all():
            return stored
    raise CheckpointError(
        f"weight {key!r} holds values beyond float32 (3.4e38): rescale that layer."
    )


def _tied(model: nn.Module) -> dict[str, str]:
    """The names of tensors that are the same as an earlier one, and that one's name."""
    first: dict[int, str] = {}
    tied = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            tied[key] = first[id(tensor)]
        first.setdefault(id(tensor), key)
    return tied


def class_path(model: nn.Module) -> str:
    """Returns the full path of a network's class, as cards name it."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def save_checkpoint(model: nn.Module, card: Card, directory: str | os.PathLike[str]) -> Card:
    """Writes `NAME.safetensors` and `NAME.json` into a directory, each of them atomically.

    Args:
        model: the trained network, of a class with a config.
        card: its card; `model`, `config`, `parameters` and the two hashes are filled in here.
        directory: where to; it is created if need be.

    Returns:
        The completed card.

    Raises:
        CheckpointError: if the network has no config, the card names another class or config than the network's, or a
            weight cannot be stored.
    """
    path = class_path(model)
    config = getattr(model, "config", None)
    if not dataclasses.is_dataclass(getattr(type(model), "Config", None)) or config is None:
        raise CheckpointError(
            f"a {path!r} cannot be rebuilt from a card: its class needs a dataclass `Config`, and it an attribute "
            "`config`."
        )
    settings = dataclasses.asdict(config)
    if card.model not in ("", path):
        raise CheckpointError(
            f"the card names the class {card.model!r}, but the network is a {path!r}."
        )
    if card.config not in ({}, settings):
        raise CheckpointError(
            f"the card has the config {card.config}, but the network has {settings}."
        )
    tied = _tied(model)
    # A tied tensor is stored once; the class ties it again.
    state = {key: tensor for key, tensor in stored_state(model).items() if key not in tied}
    content = serialise(state, metadata={"format": "pt"})
    card = replace(
        card,
        model=path,
        config=settings,
        parameters=sum(p.numel() for p in model.parameters()),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / f"{card.name}.safetensors", content)
    return save_card(card, directory)


# --- Reading weights -------------------------------------------------------------------------------------------------


def read_weights(path: Path, sha256: str) -> State:
    """Reads a safetensors file that must have the given hash. Nothing in it is run, whatever it holds.

    Raises:
        CheckpointError: if the file is foreign, a pickle, damaged or altered, or holds NaN or infinite values.
    """
    content = path.read_bytes()
    try:
        weights = parse_safetensors(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(_diagnosis(path.name, content, error)) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"{path.name!r} was altered: its SHA-256 is {found}, its card says {sha256}. Fetch both files again."
        )
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise CheckpointError(
                f"{path.name!r} holds NaN or infinite values in {key!r}: fetch it again, or train it anew."
            )
    return weights


def _diagnosis(file: str, content: bytes, error: Exception) -> str:
    """Says what is wrong with an invalid safetensors file; valid ones may begin like a pickle or a zip too."""
    if content[:2] == b"PK" or (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05"):
        return (
            f"{file!r} holds a pickle (as torch.save writes it). Loading a pickle can run any code, so it is refused; "
            "convert it to safetensors where you trust its origin."
        )
    header = int.from_bytes(content[:8], "little")
    if len(content) < 8 or content[8:9] != b"{":
        return (
            f"{file!r} is not a safetensors file: it has no header ({len(content):,} bytes in all)."
        )
    if len(content) < 8 + header:
        return f"{file!r} is not a safetensors file, or is cut within its header: {error}."
    try:
        table = msgspec.json.decode(content[8 : 8 + header], type=dict[str, dict[str, Any]])
        entries = [entry for key, entry in table.items() if key != "__metadata__"]
        expected = 8 + header + max((entry["data_offsets"][1] for entry in entries), default=0)
        size = f"its header announces {expected:,} bytes, the file has {len(content):,}"
    except (msgspec.MsgspecError, RecursionError, LookupError, TypeError) as problem:
        return f"{file!r} is not a safetensors file: its header says nothing sensible ({problem})."
    if len(content) != expected:
        wrong = "truncated" if len(content) < expected else "too long"
        return f"{file!r} is {wrong}: {size}. Fetch it again."
    return f"{file!r} is not a valid safetensors file: {error}."


# --- Building the network --------------------------------------------------------------------------------------------


def _class(card: Card) -> type[nn.Module]:
    """The class that the card names; only this package's own networks with a config qualify."""
    module_name, _, class_name = card.model.rpartition(".")
    names = module_name.split(".")
    if names[0] != "companion" or not all(n.isidentifier() and n[0] != "_" for n in names):
        raise CheckpointError(
            f"the card of {card.name!r} names the class {card.model[:120]!r}; only classes of companion are built."
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"the card of {card.name!r} names {card.model[:120]!r}, which this companion does not have: {error}."
        ) from error
    # The class must be defined there: a module's imports would open the door to other packages.
    if (
        not isinstance(found, type)
        or not issubclass(found, nn.Module)
        or found.__module__ != module_name
        or not dataclasses.is_dataclass(getattr(found, "Config", None))
    ):
        raise CheckpointError(
            f"the card of {card.name!r} names {card.model!r}, which is no network class with a config."
        )
    return found


def config_class(network: type[nn.Module]) -> type[Any]:
    """Returns the dataclass of a network's settings, its class attribute `Config`.

    Raises:
        TypeError: if the network has none.
    """
    found = getattr(network, "Config", None)
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise TypeError(
            f"{network.__name__} has no Config: give the class the dataclass of its settings under that name."
        )
    return found


def config_of(card: Card) -> Any:
    """Returns the config that a card describes, validated, as an object of its network's config class.

    Raises:
        CheckpointError: if the class is none of companion's, or a field is unknown, missing or of another type, or has
            a value that the network refuses.
    """
    kind = config_class(_class(card))
    if unknown := set(card.config) - {f.name for f in dataclasses.fields(kind)}:
        raise CheckpointError(
            f"the card of {card.name!r} has a config that {card.model} refuses: there is no {sorted(unknown)[0]!r}."
        )
    try:
        return msgspec.convert(card.config, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise CheckpointError(
            f"the card of {card.name!r} has a config that {card.model} refuses: {error}."
        ) from error


def _build(card: Card, weights: State) -> nn.Module:
    """Builds the network after its size is known to be that of the weights, so that a card cannot exhaust memory."""
    make = functools.partial(_class(card), config_of(card))
    with torch.device("meta"):
        skeleton = _construct(make, card)
    tied = _tied(skeleton)
    wanted = {key: t for key, t in skeleton.state_dict().items() if key not in tied}
    _compare(card, weights, wanted)
    # The first weights are drawn and thrown away; whoever loads does not lose random numbers over it.
    with torch.random.fork_rng(devices=[]):
        model = _construct(make, card)
    model.load_state_dict(weights | {key: weights[first] for key, first in tied.items()})
    return model.float()


def _construct(make: functools.partial[nn.Module], card: Card) -> nn.Module:
    try:
        return make()
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        # torch appends its C++ trace to some messages.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"the card of {card.name!r} has a config that {card.model} refuses: {reason}."
        ) from error


def _compare(card: Card, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Holds names, shapes and kinds of numbers of the weights against those of the network."""
    refused = f"the weights of {card.name!r} do not fit {card.model}"
    for what, odd in (("lack", set(wanted) - set(weights)), ("have", set(weights) - set(wanted))):
        if odd:
            extra = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            why = "" if what == "lack" else ", which the network does not have"
            raise CheckpointError(f"{refused}: they {what} {sorted(odd)[0]!r}{extra}{why}.")
    for key, tensor in weights.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{refused}: {key!r} has the shape {tuple(tensor.shape)}, the network {tuple(wanted[key].shape)}."
            )
        if tensor.is_floating_point() != wanted[key].is_floating_point():
            raise CheckpointError(
                f"{refused}: {key!r} is {tensor.dtype}, the network has {wanted[key].dtype}."
            )


# --- Loading ---------------------------------------------------------------------------------------------------------


def load_checkpoint(name: str | os.PathLike[str], device: str | torch.device = "cpu") -> nn.Module:
    """Builds the network that a checkpoint's card names and loads its verified weights.

    Args:
        name: a shipped checkpoint's name, such as "digit-cnn"; the path of a `.safetensors` file whose card lies beside
            it; or a folder with one checkpoint, such as that of a run.
        device: where the network goes.

    Returns:
        The network in float32 and in evaluation mode.

    Raises:
        ValueError: if no checkpoint has this name, where the message suggests the nearest, or there is no such device.
        FileNotFoundError: if the path leads nowhere.
        CheckpointError: if a file is foreign, a pickle, damaged or altered, if the card is missing or wrong, or if the
            weights do not fit the network.
    """
    device = check_device(device)
    path = weights_path(name)
    card = read_card(path.with_suffix(".json"))
    model = _build(card, read_weights(path, card.sha256))
    return model.to(device).eval()


def load_parent(
    card: Card,
    role: str,
    directory: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Loads a checkpoint that another builds on, such as the VQ-VAE under a prior.

    Args:
        card: of the checkpoint that builds on it.
        role: under which the card names it.
        directory: where to look first; then among the checkpoints that ship.
        device: where the network goes.

    Returns:
        The network in float32 and in evaluation mode.

    Raises:
        KeyError: if the card names no parent of this role.
        FileNotFoundError: if the parent is in neither place.
        CheckpointError: if it has other weights than the card says, or as from `load_checkpoint`.
    """
    if role not in card.parents:
        known = ", ".join(map(repr, card.parents)) or "none"
        raise KeyError(f"the card of {card.name!r} names no parent {role!r}; it names: {known}.")
    name, sha256 = card.parents[role]["name"], card.parents[role]["sha256"]
    # A name from a card must not lead to another folder.
    file = f"{replace(card, name=name).name}.safetensors"
    places = [Path(directory) / file] if directory is not None else []
    try:
        path = next(path for path in (*places, Path(__file__).parent / file) if path.is_file())
    except StopIteration:
        raise FileNotFoundError(
            f"the checkpoint {card.name!r} builds on {name!r} ({role}), which is not here: put {file!r} and its card "
            "beside it."
        ) from None
    found = read_card(path.with_suffix(".json")).sha256
    if found != sha256:
        raise CheckpointError(
            f"the checkpoint {card.name!r} builds on the {name!r} ({role}) with SHA-256 {sha256}, but this one has "
            f"{found}: fetch the one that it was trained with."
        )
    return load_checkpoint(path, device)
