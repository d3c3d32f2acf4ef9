"""What a loss is given, and what is said where the data lack a part."""

import pytest
import torch

from companion.data.batch import Batch

PARTS = {
    "images": torch.zeros(2, 1, 4, 4),
    "labels": torch.tensor([1, 0]),
    "captions": ("a one", "a zero"),
    "tokens": torch.tensor([[3, 4, 5], [6, 7, 8]]),
}


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize("other", PARTS)
def test_what_a_loss_requires_is_given_or_named(part, other):
    batch = Batch(**{other: PARTS[other]})
    require = getattr(batch, f"require_{part}")
    if part == other:
        assert require() is PARTS[part]
    else:
        with pytest.raises(ValueError, match=rf"needs {part}.*only {other}.*with {part}"):
            require()


@pytest.mark.parametrize("missing", [None, *PARTS])
def test_moving_keeps_every_part_and_leaves_out_what_is_missing(missing):
    given = {name: part for name, part in PARTS.items() if name != missing}
    moved = Batch(**given).to("meta")
    for name in PARTS:
        found = getattr(moved, name)
        if name == missing:
            assert found is None
        elif name == "captions":
            assert found == PARTS[name]
        else:
            assert found.device.type == "meta"
            assert (found.shape, found.dtype) == (PARTS[name].shape, PARTS[name].dtype)
    assert len(moved) == 2


def test_parts_must_be_equally_many():
    with pytest.raises(ValueError, match="equally many"):
        Batch(images=PARTS["images"], captions=("a one",))
    with pytest.raises(ValueError, match="none"):
        Batch()
