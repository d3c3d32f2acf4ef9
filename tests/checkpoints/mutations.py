"""Seeded damage to the files of a checkpoint: what may come of it is a network, or a `CheckpointError`."""

import hashlib
import json
import random
from copy import deepcopy
from pathlib import Path

from companion.checkpoints import CheckpointError, load_checkpoint
from companion.checkpoints.card import _hash

# What JSON can hold, and what somebody might put where it does not belong.
VALUES = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1.0,
        0.5,
        2**31,
        2**63,
        10**30,
        1e308,
        "",
        "x",
        "..",
        "/etc/passwd",
    ),
    *("a" * 10_000, [], {}, [[[[]]]], {"a": {"b": []}}, ["x"], {"name": 3}, "companion.vae.VAE"),
]


def places(content, path=()):
    """All places of a JSON value, its own first."""
    yield path
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from places(value, (*path, key))


def damaged_card(text: bytes, rng: random.Random) -> bytes:
    """Puts a foreign value somewhere, removes or adds a field, or damages bytes; often with an honest hash."""
    if rng.random() < 0.3:
        return damaged_bytes(text, rng)
    content = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        *path, last = rng.choice([p for p in places(content) if p])
        holder = content
        for key in path:
            holder = holder[key]
        action = rng.random()
        if action < 0.7:
            holder[last] = deepcopy(rng.choice(VALUES))
        elif action < 0.85:
            del holder[last]
        elif isinstance(holder, dict):
            holder[rng.choice(["extra", "width", "name", "__class__"])] = deepcopy(
                rng.choice(VALUES)
            )
    if isinstance(content, dict) and rng.random() < 0.8:
        content["card_sha256"] = _hash(content)
    return json.dumps(content).encode()


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats or inserts bytes; half of the time within the first thousand."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(changed), rng.choice([1_000, len(changed)])) or 1)
        action = rng.randrange(4)
        if action == 0 and changed:
            changed[at % len(changed)] = rng.randrange(256)
        elif action == 1:
            del changed[at : at + rng.randint(1, 50)]
        elif action == 2:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 20)))
        else:
            changed[at:at] = changed[: rng.randint(1, 100)]
    return bytes(changed)


def survives(weights: Path) -> bool:
    """Loads a checkpoint; returns whether it loaded, where any error but the documented one is raised."""
    try:
        load_checkpoint(weights)
    except CheckpointError:
        return False
    return True


def fuzz_cards(weights: Path, times: int, seed: int) -> int:
    """Returns how many damaged cards loaded nevertheless, as with a changed number of steps."""
    file = weights.with_suffix(".json")
    whole, rng = file.read_bytes(), random.Random(seed)
    loaded = 0
    for _ in range(times):
        file.write_bytes(damaged_card(whole, rng))
        loaded += survives(weights)
    file.write_bytes(whole)
    return loaded


def fuzz_weights(weights: Path, times: int, seed: int) -> int:
    """Returns how many damaged files loaded although their card vouches for them."""
    card, whole, rng = weights.with_suffix(".json"), weights.read_bytes(), random.Random(seed)
    content = json.loads(card.read_text())
    loaded = 0
    for _ in range(times):
        damaged = damaged_bytes(whole, rng)
        weights.write_bytes(damaged)
        content["sha256"] = hashlib.sha256(damaged).hexdigest()
        content["card_sha256"] = _hash(content)
        card.write_text(json.dumps(content))
        loaded += survives(weights)
    return loaded
