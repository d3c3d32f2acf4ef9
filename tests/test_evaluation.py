"""Shared measures: right numbers, and the same ones however the work is cut up."""

from dataclasses import replace

import pytest
import torch

from companion.data import ImageDataset, load
from companion.evaluation import Evaluator, labelled
from companion.metrics import fid, inception_score, precision_recall, psnr, sharpness
from companion.metrics.features import digit_features, digit_probabilities
from companion.randomness import derive, normal


@pytest.fixture(scope="module")
def held_out() -> ImageDataset:
    return load("digits", "test")


class Partner:
    """Stands for the fabric of one of several processes that run one after the other.

    What the others would send is kept in `sent`; the last process receives all of it.
    """

    def __init__(self, rank: int, world_size: int, sent: list[torch.Tensor]) -> None:
        self.device = torch.device("cpu")
        self.global_rank, self.world_size, self.sent = rank, world_size, sent

    def broadcast(self, value, src=0):
        return value if value is not None else self.sent[0][0, :1]

    def all_gather(self, tensor):
        self.sent.append(tensor)
        return torch.stack([*self.sent, *[tensor] * (self.world_size - len(self.sent))])


def as_processes(number, work, **settings):
    """Lets several processes do their shares, one after the other; returns what the last one ends with."""
    sent: list[torch.Tensor] = []
    evaluator = Evaluator(**settings)
    for rank in range(number):
        evaluator.fabric = Partner(rank, number, sent)
        evaluator.rank, evaluator.processes = rank, number
        result = work(evaluator)
    return result


def noise(n, source):
    return normal((n, 1, 28, 28), source).mul(0.3)


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 10, 64, 95])
def test_drawn_images_do_not_depend_on_the_number_of_processes(processes, count):
    alone = Evaluator(batch_size=10).draw(noise, count)
    assert alone.shape == (count, 1, 28, 28)
    together = as_processes(processes, lambda e: e.draw(noise, count), batch_size=10)
    assert torch.equal(together, alone)


def test_measures_of_each_image_stay_in_order(held_out):
    def mean(x, source):
        return x.mean(dim=(1, 2, 3)) + 0 * normal((len(x),), source)

    few = held_out[:37]
    expected = few.floats().mean(dim=(1, 2, 3))
    for processes in (1, 2, 4):
        found = as_processes(processes, lambda e: e.each(mean, few), batch_size=5)
        torch.testing.assert_close(found, expected)


def test_other_names_draw_other_numbers_and_seeds_too(held_out):
    def draw(x, source):
        return normal((len(x),), source)

    few = held_out[:20]
    a = Evaluator().each(draw, few, "a")
    assert torch.equal(a, Evaluator().each(draw, few, "a"))
    assert not torch.equal(a, Evaluator().each(draw, few, "b"))
    assert not torch.equal(a, Evaluator(seed=1).each(draw, few, "a"))


def test_sample_quality_is_that_of_the_metrics(held_out):
    digits = load("digits", "train").shuffled(torch.Generator().manual_seed(0))[:120]
    x = digits.floats()

    def sample(n, source):
        sample.position += n
        return x[sample.position - n : sample.position]

    sample.position = 0
    found = Evaluator(samples=120, batch_size=50).sample_quality(sample, held_out)
    real, fake = digit_features(held_out.images), digit_features(digits.images)
    expected = precision_recall(real, fake)
    sharp = sharpness(x).mean() / sharpness(held_out.floats()).mean()
    assert found == {
        "generated samples": 120,
        "FID": pytest.approx(fid(real, fake), rel=1e-4),
        "Inception Score": pytest.approx(
            inception_score(digit_probabilities(digits.images)).mean, rel=1e-4
        ),
        "precision": pytest.approx(expected.precision, abs=0.01),
        "recall": pytest.approx(expected.recall, abs=0.01),
        "sharpness, share of real": pytest.approx(float(sharp), rel=1e-4),
    }


def test_real_digits_are_better_than_noise_in_every_respect(held_out):
    digits = load("digits", "train").shuffled(torch.Generator().manual_seed(0)).floats()
    evaluator = Evaluator(samples=200)
    real = evaluator.sample_quality(lambda n, source: digits[:n], held_out)
    bad = evaluator.sample_quality(noise, held_out)
    assert real["FID"] < bad["FID"] / 5
    for name in ("Inception Score", "precision"):
        assert real[name] > bad[name]


def test_where_there_are_no_digits_only_sharpness_is_measured():
    other = ImageDataset(
        images=torch.randint(
            0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        ),
        labels=torch.zeros(20, dtype=torch.int64),
        classes=("thing",),
        name="things",
        split="all",
    )
    found = Evaluator(samples=10).sample_quality(lambda n, s: normal((n, 3, 8, 8), s), other)
    assert set(found) == {"generated samples", "sharpness, share of real"}


def test_reconstruction_counts_in_the_images_own_range(held_out):
    few = held_out[:30]
    found = Evaluator(batch_size=7).reconstruction(lambda x, source: 0.5 * x, few)
    x = few.floats()
    assert found == {
        "digits/test reconstruction MSE": pytest.approx(float((0.25 * x.square()).mean())),
        "digits/test reconstruction PSNR, dB": pytest.approx(
            float(psnr(x, 0.5 * x, data_range=2.0).mean())
        ),
    }


def test_accuracy_counts_the_right_ones(held_out):
    few = held_out[:50]  # all of class 0

    def logits(x):
        right = torch.arange(len(x)) % 2 == 0
        return torch.nn.functional.one_hot(torch.where(right, 0, 3), 10).float()

    assert Evaluator(batch_size=10).accuracy(logits, few) == {"digits/test accuracy": 0.5}


def test_mean_averages_a_number_an_image(held_out):
    few = held_out[:33]
    found = Evaluator(batch_size=10).mean(lambda x, source: x.sum(dim=(1, 2, 3)), few)
    assert found == pytest.approx(float(few.floats().double().sum(dim=(1, 2, 3)).mean()), rel=1e-5)


def test_labels_travel_with_their_images(held_out):
    few = held_out[:23]

    def tell(x, source, labels):
        return torch.stack([x.mean(dim=(1, 2, 3)), labels.float()], dim=1)

    found = Evaluator(batch_size=10).each(tell, few, labelled=True)
    torch.testing.assert_close(found[:, 0], few.floats().mean(dim=(1, 2, 3)))
    assert found[:, 1].long().equal(few.labels)


def test_a_probe_on_the_labels_themselves_is_perfect(held_out):
    train = load("digits", "train")
    lookup = {data.split: iter(data.labels.split(100)) for data in (train, held_out)}
    turn = [*["train"] * 40, *["test"] * 10]

    def encode(x):
        return torch.nn.functional.one_hot(next(lookup[turn.pop(0)]), 10).float()

    found = Evaluator(batch_size=100).linear_probe(encode, train, held_out)
    assert found == {
        "digits/test linear probe accuracy, 100 labels": 1.0,
        "digits/test linear probe accuracy, 100 labels, spread": 0.0,
    }


def test_a_probe_on_pixels_is_far_above_chance(held_out):
    train = load("digits", "train")[::4]
    few = held_out[::4]
    found = Evaluator().linear_probe(lambda x: x, train, few, labels=50, draws=2)
    assert 0.5 < found["digits/test linear probe accuracy, 50 labels"] < 0.9


@pytest.mark.parametrize("labels", [45, 2000])
def test_no_probe_where_the_labels_cannot_be_shared_out(held_out, labels):
    few = held_out[::10]
    assert Evaluator().linear_probe(lambda x: x, few, few, labels=labels) == {}


def test_labels_are_drawn_evenly_and_anew():
    labels = torch.arange(10).repeat(30)
    first = labelled(labels, 50, derive(0, "labels", 0))
    assert labels[first].bincount().tolist() == [5] * 10
    assert len(first.unique()) == 50
    assert not torch.equal(first, labelled(labels, 50, derive(0, "labels", 1)))


@pytest.mark.parametrize(
    ("count", "message"),
    [(15, "15 labels cannot be shared out evenly among 10"), (400, "class 0 has 30 samples")],
)
def test_impossible_numbers_of_labels_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        labelled(torch.arange(10).repeat(30), count, derive(0))


def test_too_few_samples_or_images_a_batch():
    with pytest.raises(ValueError, match="samples must be at least 10, got 9"):
        Evaluator(samples=9)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Evaluator(batch_size=0)


def test_values_outside_the_range_are_clamped_as_a_picture_would(held_out):
    few = replace(held_out[:4])
    found = Evaluator().reconstruction(lambda x, source: 3 * torch.ones_like(x), few)
    expected = (few.floats() - 1).square().mean()
    assert found["digits/test reconstruction MSE"] == pytest.approx(float(expected))
