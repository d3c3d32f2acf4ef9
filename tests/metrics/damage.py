"""Damaged files of feature statistics, for the unit tests and, in greater number, for the bench."""

import random
from collections.abc import Iterable
from pathlib import Path

import torch

from companion.metrics import FeatureStatistics


def mutated(content: bytes, seed: int) -> bytes:
    """Flips bits, cuts, repeats, inserts or overwrites a few bytes; never gives the content back unchanged."""
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place, length = rng.randrange(len(data) or 1), rng.choice([1, 2, 8, 40])
        match rng.randrange(5):
            case 0 if data:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place : place + length] = rng.randbytes(length)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data = data[: max(1, place)]
    return bytes(data) if bytes(data) != content else content[:-1]


def damaged_statistics(path: Path, seeds: Iterable[int]) -> list[int]:
    """Returns the seeds of damaged files that were taken for whole ones, but for those with the same numbers.

    Any exception but the documented one comes out.
    """
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    right = FeatureStatistics.of(features)
    right.save(path)
    content, survived = path.read_bytes(), []
    for seed in seeds:
        path.write_bytes(mutated(content, seed))
        try:
            found = FeatureStatistics.load(path)
        except ValueError:
            continue
        if found.count != right.count or not torch.equal(found.covariance, right.covariance):
            survived.append(seed)
    return survived
