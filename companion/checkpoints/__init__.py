"""Trained weights, each with a card that says where they come from, and their verified loading.

A checkpoint is two files side by side: `NAME.safetensors` holds the weights in half precision, and `NAME.json`, the
card, holds the network's config, the recipe, the data and its hash, what was measured, and the SHA-256 of the weights
and of itself. A pickle is never read: loading one can run any code it likes, whereas a safetensors file is a table of
numbers and nothing else.

What concerns cards alone (`companion.checkpoints.card`) works without torch, which is imported with the first weights.
"""

import importlib
from typing import TYPE_CHECKING

from companion.checkpoints.card import (
    SHIPPED,
    Card,
    CheckpointError,
    checkpoint_names,
    load_card,
    package_versions,
    read_card,
    save_card,
)

if TYPE_CHECKING:
    from companion.checkpoints.weights import (
        class_path,
        config_of,
        load_checkpoint,
        load_parent,
        save_checkpoint,
        stored_state,
    )

__all__ = [
    "SHIPPED",
    "Card",
    "CheckpointError",
    "checkpoint_names",
    "class_path",
    "config_of",
    "load_card",
    "load_checkpoint",
    "load_parent",
    "package_versions",
    "read_card",
    "save_card",
    "save_checkpoint",
    "stored_state",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("companion.checkpoints.weights"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
