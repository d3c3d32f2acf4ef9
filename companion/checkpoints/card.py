"""The card of a checkpoint: what it is, where it comes from, and what was measured on it. Nothing here needs torch.

A card is JSON beside the weights. Format 2 is described by `Card`; format 1, in which measurements were prose and some
settings had other names, stays readable. A card is data from elsewhere: whatever it holds, reading it ends in a `Card`
or in a `CheckpointError`.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from companion import checks
from companion.errors import unknown_name
from companion.files import write_atomically
from companion.measurement import Better, Measurement, find

FORMAT = 2
SHIPPED = Path(__file__).parent
# Cards have a few thousand bytes.
LARGEST = 10_000_000


class CheckpointError(ValueError):
    """A checkpoint that is not what its card says, or is no checkpoint at all."""


def package_versions() -> dict[str, str]:
    """Returns the versions that a rerun of the training would have to match."""
    names = ("companion", "torch", "numpy", "safetensors")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known about a checkpoint.

    Attributes:
        name: the checkpoint's name, also its files' stem: letters, digits and "._-".
        model: the full path of the network's class, such as "companion.gan.GAN"; filled in at saving.
        config: the fields of the network's config; filled in at saving.
        recipe: the recipe's name under "name", and its settings.
        data: the training set's name, size and content hash, and what was held out of it.
        parents: the checkpoints that it builds on: role → {"name", "sha256" of the weights}.
        steps: optimisation steps.
        seed: the seed of the training.
        seconds: wall-clock time of the training.
        device: where it ran.
        precision: in which it ran, "32-true" or "bf16-mixed".
        measurements: what was measured after training, on the weights as stored.
        evaluation: "samples", "seed" and "batch_size" of the measuring.
        packages: versions of the packages that trained it.
        parameters: number of trainable numbers; filled in at saving.
        sha256: hash of the weights' file, hexadecimal; filled in at saving.
        card_sha256: hash of the card's other fields, hexadecimal; filled in at saving.
        format: version of this layout.

    Raises:
        CheckpointError: for a name that is none, or a number that cannot be.
    """

    name: str
    model: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, dict[str, str]] = field(default_factory=dict)
    steps: int = 0
    seed: int = 0
    seconds: float | int = 0.0
    device: str = ""
    precision: str = ""
    measurements: tuple[Measurement, ...] = ()
    evaluation: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=package_versions)
    parameters: int = 0
    sha256: str = ""
    card_sha256: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        # The name becomes a file's: a separator or a leading dot would choose where it lands.
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.name):
            raise CheckpointError(
                f"{self.name[:120]!r} is no name for a checkpoint: use up to 100 letters, digits, '.', '_' or '-', the "
                "first of them no '.' or '-'."
            )
        try:
            checks.whole(0, steps=self.steps, parameters=self.parameters)
            checks.number(0, seconds=self.seconds)
        except ValueError as error:
            raise CheckpointError(f"{error}") from None
        for role, parent in self.parents.items():
            if not {"name", "sha256"} <= set(parent):
                raise CheckpointError(
                    f"the parent {role!r} needs a name and the sha256 of its weights."
                )

    def value(self, name: str, **where: str | int) -> float:
        """Returns the number of the one measurement of a name, and of other attributes if given.

        `card.value("FID")`, `card.value("−ELBO", data="mnist")`.

        Raises:
            KeyError: if there is none, or more than one; the message lists the candidates.
            ValueError: if the number was not finite.
        """
        found = find(self.measurements, name, **where)
        if found.value is None:
            raise ValueError(f"{found.label} of {self.name!r} was not finite.")
        return found.value


# --- Where cards lie -------------------------------------------------------------------------------------------------


def checkpoint_names() -> tuple[str, ...]:
    """Returns the names of the checkpoints that ship with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.safetensors")))


def weights_path(name: str | os.PathLike[str]) -> Path:
    """Returns the path of the weights that a shipped checkpoint's name, a file or a folder leads to.

    A file is the `.safetensors` or the `.json` of a checkpoint; a folder, such as that of a run, holds exactly one
    checkpoint beside those that it builds on and whatever else is there.

    Raises:
        ValueError: if no checkpoint has this name; the message suggests the nearest.
        FileNotFoundError: if the path leads nowhere, or to a folder without a checkpoint.
        CheckpointError: if the folder holds several.
    """
    text = os.fspath(name)
    path = Path(text)
    if text in checkpoint_names() and not isinstance(name, Path):
        return SHIPPED / f"{text}.safetensors"
    if path.is_dir():
        return _only_checkpoint(path)
    separated = "/" in text or os.sep in text
    if isinstance(name, Path) or separated or path.suffix in (".safetensors", ".json"):
        path = path.with_suffix(".safetensors") if path.suffix == ".json" else path
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint file {str(path)!r}.")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"the file {str(path)!r} is no checkpoint: name one that ends in .safetensors, with its .json card "
                "beside it, or the folder that holds them."
            )
        return path
    raise unknown_name(
        "checkpoint",
        text,
        checkpoint_names(),
        "The path of a .safetensors file with its .json card beside it works too, and so does a run's folder.",
    )


def _only_checkpoint(folder: Path) -> Path:
    """The one checkpoint of a folder; the states of a run lie there too, and their JSON is no card."""
    found, parents = [], set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            content = _decode(path.with_suffix(".json"))
        except CheckpointError:
            continue
        if {"model", "sha256", "format"} <= set(content):
            found.append(path)
            parents |= _named_parents(content)
    # What another checkpoint builds on lies there for its sake.
    found = [path for path in found if path.stem not in parents]
    if not found:
        raise FileNotFoundError(
            f"the folder {str(folder)!r} holds no checkpoint (a .safetensors file with its .json card): finish the "
            "training, or name another folder."
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(
            f"the folder {str(folder)!r} holds several checkpoints: name one of {names}."
        )
    return found[0]


def _named_parents(content: dict[str, Any]) -> set[str]:
    """The names of the checkpoints that one builds on, from a card that nobody has checked yet."""
    parents = content.get("parents")
    entries = parents.values() if isinstance(parents, dict) else ()
    return {
        entry["name"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    } - {content.get("name")}


# --- Reading and writing ---------------------------------------------------------------------------------------------


def load_card(name: str | os.PathLike[str]) -> Card:
    """Reads a checkpoint's card, by the checkpoint's name, its path or its folder.

    Raises:
        ValueError: if no checkpoint has this name; the message suggests the nearest.
        FileNotFoundError: if the path leads nowhere.
        CheckpointError: if the card is missing, was altered, or is not one.
    """
    return read_card(weights_path(name).with_suffix(".json"))


def read_card(path: Path) -> Card:
    """Reads the card in a file, of format 2 or 1; fields that this version does not know are ignored.

    Raises:
        CheckpointError: if the file is missing, was altered, or is no card.
    """
    content = _decode(path)
    version = content.get("format")
    if version == 1:
        content = from_format_1(content, path.name)
    elif version != FORMAT:
        raise CheckpointError(
            f"{path.name!r} is not a checkpoint's card: it has no 'format'."
            if version is None
            else f"the card {path.name!r} has format {str(version)[:40]}, this companion reads 1 and {FORMAT}. Update "
            "the package, or fetch the checkpoint that goes with it."
        )
    elif content.get("card_sha256") != (found := _hash(content)):
        raise CheckpointError(
            f"the card {path.name!r} was altered: its fields have the SHA-256 {found}, it says "
            f"{str(content.get('card_sha256'))[:80]}. Fetch both files again."
        )
    if missing := {"name", "model", "config", "sha256"} - set(content):
        raise CheckpointError(
            f"{path.name!r} is not a checkpoint's card: missing {sorted(missing)}."
        )
    try:
        # The packages of this machine are not those that trained it.
        return msgspec.convert({"packages": {}} | content, Card, strict=True)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path.name!r} is not a checkpoint's card: {error}.") from error


def save_card(card: Card, directory: str | os.PathLike[str]) -> Card:
    """Writes `NAME.json` into a directory, atomically, and returns the card with its hash.

    Raises:
        CheckpointError: if a field holds what JSON cannot say.
    """
    card = replace(card, card_sha256="", format=FORMAT)
    try:
        content = json.loads(json.dumps(dataclasses.asdict(card), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the card of {card.name!r} cannot be written as JSON: {error}."
        ) from error
    content["card_sha256"] = _hash(content)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(Path(directory) / f"{card.name}.json", text.encode())
    return replace(card, card_sha256=content["card_sha256"])


def _hash(content: dict[str, Any]) -> str:
    """The SHA-256 of a card's fields but its own, whatever their order and spacing in the file."""
    rest = {key: value for key, value in content.items() if key != "card_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _decode(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"the card {path.name!r} is missing beside {path.with_suffix('.safetensors').name!r}. Without it "
            "neither the model nor the file's hash is known; get both files together."
        )
    if path.stat().st_size > LARGEST:
        raise CheckpointError(
            f"{path.name!r} is not a checkpoint's card: it has {path.stat().st_size:,} bytes."
        )
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the card {path.name!r} is not a JSON file: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name!r} is not a checkpoint's card: it holds no fields.")
    return content


# --- Format 1 --------------------------------------------------------------------------------------------------------

# What settings of a network are called now; the recipes had the same names, but for these.
RENAMED: dict[str, dict[str, str]] = {
    "companion.autoencoder.Autoencoder": {"latent": "latent_dim", "network": "architecture"},
    "companion.denoising_autoencoder.DenoisingAutoencoder": {"latent": "latent_dim"},
    "companion.gan.GAN": {"latent": "latent_dim", "normalise": "normalisation"},
    "companion.masked_autoencoder.MaskedAutoencoder": {
        "share": "mask_ratio",
        "normalise": "normalise_targets",
    },
    "companion.vae.VAE": {"latent": "latent_dim"},
    "companion.vae_gan.VAEGAN": {"latent": "latent_dim", "precision": "observation_precision"},
}
RENAMED_IN_RECIPES = {
    "companion.masked_autoencoder.MaskedAutoencoder": {"encoder_width": "width"},
    "companion.vae_gan.VAEGAN": {"likeness": "observation_precision"},
}
BETTER: dict[str, Better] = {
    "FID": "lower",
    "Inception Score": "higher",
    "precision": "higher",
    "recall": "higher",
    "accuracy": "higher",
    "reconstruction MSE": "lower",
    "reconstruction PSNR": "higher",
    "MSE of hidden patches": "lower",
    "−ELBO": "lower",
    "−IWAE-50": "lower",
    "bits/dim": "lower",
    "linear probe accuracy": "higher",
}
UNITS = ("dB", "nats")
OF_SAMPLES = ("FID", "Inception Score", "precision", "recall", "sharpness, share of real")


def from_format_1(content: dict[str, Any], file: str) -> dict[str, Any]:
    """Returns the fields of a card of format 2 that say what one of format 1 says.

    Raises:
        CheckpointError: if the fields are not those of a card.
    """
    for name in ("config", "recipe", "data", "metrics"):
        if not isinstance(content.get(name), dict):
            raise CheckpointError(
                f"{file!r} is not a checkpoint's card: {name!r} must be an object."
            )
    if not isinstance(content.get("model"), str):
        raise CheckpointError(f"{file!r} is not a checkpoint's card: 'model' must be a string.")
    model, recipe = content["model"], dict(content["recipe"])
    names = RENAMED.get(model, {})
    precision = recipe.get("precision", "")
    in_recipe = {k: v for k, v in names.items() if k != "precision"}
    in_recipe |= RENAMED_IN_RECIPES.get(model, {})
    found = measurements_of_format_1(content["metrics"], content["data"])
    samples = max((m["samples"] for m in found), default=0)
    rest = {key: value for key, value in content.items() if key != "metrics"}
    return rest | {
        "config": {names.get(key, key): value for key, value in content["config"].items()},
        "recipe": {in_recipe.get(key, key): value for key, value in recipe.items()},
        "precision": precision,
        "measurements": found,
        "evaluation": {"samples": samples} if samples else {},
        "format": FORMAT,
    }


def measurements_of_format_1(metrics: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """Turns numbers under prose, such as "digits/test reconstruction PSNR, dB, noise 0.5", into measurements."""
    numbers = {
        key: value
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    samples = next((v for k, v in numbers.items() if k.endswith("generated samples")), 0)
    samples = int(samples) if math.isfinite(samples) else 0
    found = []
    for key, value in numbers.items():
        if key.endswith(("generated samples", ", spread")):
            continue
        told = _from_prose(key)
        if told["name"] in OF_SAMPLES:
            held_out = str(data.get("held out", "")).partition("/")
            told |= {"samples": samples, "data": held_out[0], "split": held_out[2]}
        if (spread := numbers.get(f"{key}, spread")) is not None:
            told["spread"] = spread
        found.append(told | {"value": value})
    return found


def _from_prose(key: str) -> dict[str, Any]:
    of, colon, name = key.rpartition(": ")
    told: dict[str, Any] = {"of": of if colon else "", "samples": 0}
    place = re.match(r"([\w-]+)/(\w+) (.*)", name)
    if place:
        told |= {"data": place[1], "split": place[2]}
        name = place[3]
    if name.startswith("training "):
        name = name.replace("likeness", "reconstruction")
    if name != "sharpness, share of real":
        name, *parts = name.split(", ")
        told["unit"] = next((part for part in parts if part in UNITS), "")
        told["of"] = told["of"] or ", ".join(part for part in parts if part not in UNITS)
    name = "reconstruction term" if name == "reconstruction" else name
    return told | {"name": name, "better": BETTER.get(name, "neither")}
