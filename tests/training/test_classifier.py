"""What a classifier's training needs beside the loop: augmentation within its bounds, and accuracy."""

import pytest
import torch
from torch import nn

from companion.data import load, to_float
from companion.randomness import Rows
from companion.training import accuracy, random_affine


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")[::40]


def test_a_part_of_a_batch_is_moved_as_in_the_whole(digits):
    x = to_float(digits.images[:12])
    whole = random_affine(x, torch.Generator().manual_seed(3))
    rows = Rows(torch.Generator().manual_seed(3), 4, 9, 12)
    torch.testing.assert_close(random_affine(x[4:9], rows), whole[4:9], atol=1e-6, rtol=0)
    assert not torch.allclose(whole, x, atol=0.1)


def test_no_amount_of_augmentation_is_the_identity(generator, digits):
    x = to_float(digits.images[:8])
    same = random_affine(x, generator, degrees=0.0, scale=0.0, shear=0.0, shift=0.0)
    torch.testing.assert_close(same, x, atol=1e-4, rtol=0)


def test_augmentation_moves_within_its_bounds(generator):
    """A single bright pixel at the centre moves by at most the shift, and the background stays −1."""
    x = -torch.ones(200, 1, 29, 29)
    x[..., 14, 14] = 1
    moved = random_affine(x, generator, degrees=0.0, scale=0.0, shear=0.0, shift=3.0)
    weight = moved[:, 0] + 1
    rows = torch.arange(29.0)
    for axis in (1, 2):
        centre = (weight.sum(dim=axis) * rows).sum(dim=1) / weight.sum(dim=(1, 2)) - 14
        assert float(centre.abs().max()) <= 3 + 1e-4
        assert float(centre.std()) > 1
    assert float(moved.min()) == -1
    assert float(moved.max()) <= 1 + 1e-6


def test_rotation_turns_by_at_most_the_angle(generator):
    x = -torch.ones(100, 1, 29, 29)
    x[..., 14, 4:25] = 1
    turned = random_affine(x, generator, degrees=20.0, scale=0.0, shear=0.0, shift=0.0)[:, 0] + 1
    grid = torch.arange(29.0) - 14
    yy, xx = torch.meshgrid(grid, grid, indexing="ij")
    cross, square = (turned * xx * yy).sum(dim=(1, 2)), (turned * (xx**2 - yy**2)).sum(dim=(1, 2))
    angles = torch.rad2deg(0.5 * torch.atan2(2 * cross, square))
    assert float(angles.abs().max()) <= 20.5
    assert float(angles.max()) > 10
    assert float(angles.min()) < -10


def test_accuracy_uses_evaluation_mode_and_puts_the_mode_back():
    class Mode(nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.tensor([[1.0, 0.0] if self.training else [0.0, 1.0]]).repeat(len(x), 1)

    model = Mode().train()
    labels = torch.tensor([1, 1, 0, 1])
    assert accuracy(model, torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels, batch_size=3) == 0.75
    assert model.training
