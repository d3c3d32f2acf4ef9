"""The training of a classifier: it learns, repeats itself, and says what is wrong."""

import pytest
import torch
from torch import nn

from companion.data import load, to_float
from companion.metrics.digit_cnn import DigitCNN
from companion.training import accuracy, fit_classifier, random_affine
from companion.training.classifier import warmup_cosine

SETTINGS = {"epochs": 3, "batch_size": 32, "learning_rate": 2e-2, "weight_decay": 0.01}


def network(width: int = 16) -> DigitCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DigitCNN(width=width)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")[::4]


def train(digits, **changes):
    model = network()
    generator = torch.Generator().manual_seed(0)
    progress = list(
        fit_classifier(
            model, digits.images, digits.labels, generator=generator, **(SETTINGS | changes)
        )
    )
    return model, progress


def test_it_learns_digits(digits):
    model, progress = train(digits)
    assert progress[0].loss > 1.5 > 1 > progress[-1].loss
    test = load("digits", "test")
    assert accuracy(model, test.images, test.labels) > 0.8


def test_steps_are_counted_and_the_rate_falls_to_nothing(digits):
    _, progress = train(digits[:100])
    assert [p.step for p in progress] == list(range(1, 10))
    assert {p.total for p in progress} == {9}
    assert progress[0].learning_rate == SETTINGS["learning_rate"]
    assert progress[-1].learning_rate < 0.1 * SETTINGS["learning_rate"]


def test_a_seed_decides_everything(digits):
    runs = [train(digits[:200], augment=random_affine, epochs=1) for _ in range(2)]
    assert runs[0][1] == runs[1][1]


def test_the_callers_own_random_stream_is_untouched(digits):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(digits[:64], epochs=1, augment=random_affine)
    assert torch.equal(torch.rand(2), expected)


def test_bf16_learns_too(digits):
    _, progress = train(digits, bf16=True)
    assert progress[0].loss > 1.5 > 1 > progress[-1].loss


def test_a_loss_that_is_not_finite_stops_the_training(digits):
    with pytest.raises(
        FloatingPointError, match=r"loss is (nan|inf) at step \d+; lower the learning rate"
    ):
        train(digits[:64], epochs=20, learning_rate=1e30)


def test_too_few_images_for_a_batch(digits):
    with pytest.raises(ValueError, match="batch_size is 32, but there are only 10 images"):
        train(digits[:10])


def test_warm_up_then_cosine():
    factors = [warmup_cosine(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.001


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
