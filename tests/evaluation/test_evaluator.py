"""Shared measures: right numbers, and the same ones however the work is cut up."""

import functools
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import companion.evaluation.evaluator as evaluator_module
from companion.data import ImageDataset, load
from companion.evaluation import Evaluator, labelled
from companion.measurement import find
from companion.metrics import fid, inception_score, kid, precision_recall, psnr, sharpness
from companion.metrics.extractors import Extractor
from companion.metrics.features import digit_features, digit_probabilities
from companion.randomness import PerImage, derive, normal


@pytest.fixture(scope="module")
def held_out() -> ImageDataset:
    return load("digits", "test")


@pytest.fixture(scope="module")
def things() -> ImageDataset:
    """Images that are no digits."""
    pixels = torch.randint(
        0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.zeros(20, dtype=torch.int64)
    return ImageDataset(
        images=pixels, labels=labels, classes=("thing",), name="things", split="all"
    )


class Partner:
    """Stands for the fabric of one of several processes that run one after the other.

    What the others would send is kept in `sent`; the last process receives all of it.
    """

    def __init__(self, rank: int, world_size: int, sent: list, said: list) -> None:
        self.device = torch.device("cpu")
        self.global_rank, self.world_size = rank, world_size
        self.sent, self.said = sent, said
        self.place = self.word = 0

    def broadcast(self, value, src=0):
        # What the first process says in each round is kept, and told to the others in their turn.
        if self.global_rank == 0:
            self.said.append(value)
        self.word += 1
        return self.said[self.word - 1]

    def all_gather(self, tensor):
        if self.place == len(self.sent):
            self.sent.append([])
        round_ = self.sent[self.place]
        self.place += 1
        round_.append(tensor)
        return torch.stack([*round_, *[tensor] * (self.world_size - len(round_))])


def as_processes(number, work, **settings):
    """Lets several processes do their shares, one after the other; returns what the last one ends with."""
    sent: list = []
    said: list = []
    evaluator = Evaluator(**settings)
    with mock.patch("companion.evaluation.evaluator.gather", Partner.all_gather):
        for rank in range(number):
            evaluator.fabric = Partner(rank, number, sent, said)
            evaluator.rank, evaluator.processes = rank, number
            result = work(evaluator)
    return result


def noise(n, source):
    return normal((n, 1, 28, 28), source).mul(0.3)


def value(found, name, **where):
    return find(found, name, **where).value


# --- Batches and processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 10, 64, 95])
def test_drawn_images_do_not_depend_on_the_number_of_processes(processes, count):
    alone = Evaluator(batch_size=10).draw(noise, count)
    assert alone.shape == (count, 1, 28, 28)
    together = as_processes(processes, lambda e: e.draw(noise, count), batch_size=10)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_the_batch_size_changes_no_image(batch_size):
    found = Evaluator(batch_size=batch_size, seed=3).draw(noise, 40)
    assert torch.equal(found, noise(40, PerImage(3, 0, 40)).clamp(-1, 1))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_changes_no_measure(batch_size, held_out):
    def draw(batch, source):
        x = batch.images
        return {
            "a": x.mean(dim=(1, 2, 3)) * normal((len(x),), source),
            "b": normal((len(x), 2), source),
        }

    few = held_out[:30]
    found = Evaluator(batch_size=batch_size).each(draw, few, "name")
    expected = Evaluator(batch_size=30).each(draw, few, "name")
    assert set(found) == {"a", "b"}
    torch.testing.assert_close(found["a"], expected["a"])
    assert torch.equal(found["b"], expected["b"])


def test_measures_of_each_image_stay_in_order(held_out):
    def mean(batch, source):
        return batch.images.mean(dim=(1, 2, 3)) + 0 * normal((len(batch),), source)

    few = held_out[:37]
    expected = few.floats().mean(dim=(1, 2, 3))
    for processes in (1, 2, 4):
        found = as_processes(processes, lambda e: e.each(mean, few), batch_size=5)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_measures_with_names_come_together(processes, held_out):
    def several(batch, source):
        x = batch.images
        return {
            "mean": x.mean(dim=(1, 2, 3)),
            "corner": x[:, 0, :2, 0],
            "noise": normal((len(x),), source),
        }

    few = held_out[:23]
    alone = Evaluator(batch_size=5).each(several, few)
    found = as_processes(processes, lambda e: e.each(several, few), batch_size=5)
    assert list(found) == ["mean", "corner", "noise"]
    for name in alone:
        assert torch.equal(found[name], alone[name])


def test_other_names_draw_other_numbers_and_seeds_too(held_out):
    def draw(batch, source):
        return normal((len(batch),), source)

    few = held_out[:20]
    a = Evaluator().each(draw, few, "a")
    assert torch.equal(a, Evaluator().each(draw, few, "a"))
    assert not torch.equal(a, Evaluator().each(draw, few, "b"))
    assert not torch.equal(a, Evaluator(seed=1).each(draw, few, "a"))


def test_labels_travel_with_their_images(held_out):
    few = held_out[:23]

    def tell(batch, source):
        return torch.stack([batch.images.mean(dim=(1, 2, 3)), batch.labels.float()], dim=1)

    found = Evaluator(batch_size=10).each(tell, few)
    torch.testing.assert_close(found[:, 0], few.floats().mean(dim=(1, 2, 3)))
    assert found[:, 1].long().equal(few.labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 9}, "samples must be at least 10, got 9"),
        ({"samples": 10**12}, "samples must be at most 1,000,000, got 1,000,000,000,000"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(**settings)


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one image must be drawn, got 0"):
        Evaluator().draw(noise, 0)


@pytest.fixture
def every_update(monkeypatch):
    """Lets bars be drawn at every update; else they are drawn ten times a second, which no short test reaches."""
    often = functools.partial(evaluator_module.tqdm, mininterval=0, miniters=1)
    monkeypatch.setattr(evaluator_module, "tqdm", often)


@pytest.mark.usefixtures("every_update")
@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_a_bar_on_request(progress, shown, capsys, held_out):
    """Where standard error is no terminal, as here, None shows none."""
    Evaluator(progress=progress).each(
        lambda batch, _: batch.images.mean(dim=(1, 2, 3)), held_out[:20], "means"
    )
    said = capsys.readouterr().err
    assert ("means" in said) == shown
    assert ("20/20" in said) == shown


@pytest.mark.usefixtures("every_update")
def test_only_the_first_process_shows_a_bar(capsys, held_out):
    as_processes(2, lambda e: e.draw(noise, 20), batch_size=5, progress=True)
    assert capsys.readouterr().err.count("20/20") == 1


# --- What is measured ---------------------------------------------------------------------------------------------


def test_sample_quality_is_that_of_the_metrics(held_out):
    digits = load("digits", "train").shuffled(torch.Generator().manual_seed(0))[:120]
    x = digits.floats()

    def sample(n, source):
        sample.position += n
        return x[sample.position - n : sample.position]

    sample.position = 0
    found = Evaluator(samples=120, batch_size=50, seed=4).sample_quality(
        sample, held_out, of="them"
    )
    real, fake = digit_features(held_out.images), digit_features(digits.images)
    expected = precision_recall(real, fake)
    score = inception_score(digit_probabilities(digits.images))
    sharp = sharpness(x).mean() / sharpness(held_out.floats()).mean()
    assert {m.name: m.value for m in found} == {
        "FID": pytest.approx(fid(real, fake), rel=1e-4),
        "KID": pytest.approx(kid(real, fake).mean, rel=1e-3),
        "Inception Score": pytest.approx(score.mean, rel=1e-4),
        "precision": pytest.approx(expected.precision, abs=0.01),
        "recall": pytest.approx(expected.recall, abs=0.01),
        "sharpness, share of real": pytest.approx(float(sharp), rel=1e-4),
    }
    assert find(found, "Inception Score").spread == pytest.approx(score.std, rel=1e-3)
    for m in found:
        assert (m.data, m.split, m.samples, m.seed, m.of) == ("digits", "test", 120, 4, "them")
    assert {m.name: m.better for m in found} == {
        "FID": "lower",
        "KID": "lower",
        "Inception Score": "higher",
        "precision": "higher",
        "recall": "higher",
        "sharpness, share of real": "neither",
    }


def test_real_digits_are_better_than_noise_in_every_respect(held_out):
    digits = load("digits", "train").shuffled(torch.Generator().manual_seed(0)).floats()
    evaluator = Evaluator(samples=200)
    real = evaluator.sample_quality(lambda n, source: digits[:n], held_out)
    bad = evaluator.sample_quality(noise, held_out)
    assert value(real, "FID") < value(bad, "FID") / 5
    assert value(real, "KID") < value(bad, "KID") / 5
    for name in ("Inception Score", "precision"):
        assert value(real, name) > value(bad, name)


def test_where_there_are_no_features_only_sharpness_is_measured(things):
    found = Evaluator(samples=10).sample_quality(lambda n, s: normal((n, 3, 8, 8), s), things)
    assert [m.name for m in found] == ["sharpness, share of real"]


def corners() -> Extractor:
    """Features of one's own: two pixels; there are no classes."""

    def features(x):
        return x[:, 0, :2, 0].double()

    return Extractor("corners", "all images", features, None, lambda x: (features(x), None))


def test_features_that_were_chosen_are_taken(things):
    evaluator = Evaluator(samples=30, extractor=corners())
    found = evaluator.sample_quality(lambda n, s: normal((n, 3, 8, 8), s).mul(0.1), things)
    fake = normal((30, 3, 8, 8), PerImage(0, 0, 30)).mul(0.1)[:, 0, :2, 0].double()
    real = things.floats()[:, 0, :2, 0].double()
    assert value(found, "FID") == pytest.approx(fid(real, fake), rel=1e-5)
    assert "Inception Score" not in {m.name for m in found}


def test_too_few_images_for_neighbours(held_out):
    Evaluator().check(held_out[:4])
    with pytest.raises(ValueError, match=r"3 neighbours.*digits/test has 3"):
        Evaluator().check(held_out[:3])


def test_reconstruction_counts_in_the_images_own_range(held_out):
    few = held_out[:30]
    found = Evaluator(batch_size=7).reconstruction(lambda x, source: 0.5 * x, few, of="halves")
    x = few.floats()
    mse, decibels = (find(found, f"reconstruction {name}") for name in ("MSE", "PSNR"))
    assert mse.value == pytest.approx(float((0.25 * x.square()).mean()))
    each = -10 * torch.log10((0.25 * x.square()).mean(dim=(1, 2, 3)) / 4)
    assert decibels.value == pytest.approx(float(each.mean()))
    assert decibels.value == pytest.approx(float(psnr(x, 0.5 * x, data_range=2.0).mean()))
    assert (mse.unit, decibels.unit) == ("", "dB")
    assert (mse.better, decibels.better) == ("lower", "higher")
    assert {(m.data, m.split, m.samples, m.of) for m in found} == {("digits", "test", 30, "halves")}


def test_values_outside_the_range_are_clamped_as_a_picture_would(held_out):
    few = replace(held_out[:4])
    found = Evaluator().reconstruction(lambda x, source: 3 * torch.ones_like(x), few)
    expected = (few.floats() - 1).square().mean()
    assert value(found, "reconstruction MSE") == pytest.approx(float(expected))


def test_perfect_reconstruction_has_no_finite_psnr(held_out):
    found = Evaluator().reconstruction(lambda x, source: x, held_out[:4])
    assert value(found, "reconstruction MSE") == 0
    assert value(found, "reconstruction PSNR") is None


def test_accuracy_counts_the_right_ones(held_out):
    few = held_out[:50]  # all of class 0

    def logits(x):
        right = torch.arange(len(x)) % 2 == 0
        return torch.nn.functional.one_hot(torch.where(right, 0, 3), 10).float()

    (found,) = Evaluator(batch_size=10).accuracy(logits, few)
    assert (found.name, found.value, found.samples) == ("accuracy", 0.5, 50)


def test_mean_averages_a_number_an_image(held_out):
    few = held_out[:33]
    found = Evaluator(batch_size=10).mean(lambda b, _: b.images.sum(dim=(1, 2, 3)), few)
    assert found == pytest.approx(float(few.floats().double().sum(dim=(1, 2, 3)).mean()), rel=1e-5)


# --- The probe ----------------------------------------------------------------------------------------------------


def test_a_probe_on_the_labels_themselves_is_perfect(held_out):
    train = load("digits", "train")
    lookup = {data.split: iter(data.labels.split(100)) for data in (train, held_out)}
    turn = [*["train"] * 40, *["test"] * 10]

    def encode(x):
        return torch.nn.functional.one_hot(next(lookup[turn.pop(0)]), 10).float()

    (found,) = Evaluator(batch_size=100).linear_probe(encode, train, held_out)
    assert (found.name, found.of, found.value, found.spread) == (
        "linear probe accuracy",
        "100 labels",
        1.0,
        0.0,
    )


def test_a_probe_is_that_of_scikit_learn(held_out):
    """Mean and spread against a computation written out here; the spread divides by the number of draws."""
    train, few = load("digits", "train")[::8], held_out[::4]
    (found,) = Evaluator(seed=2).linear_probe(lambda x: x, train, few, labels=50, draws=3)
    a, b = (d.floats().flatten(1).double().numpy() for d in (train, few))
    shares = []
    for draw in range(3):
        chosen = labelled(train.labels, 50, derive(2, "labels", draw)).numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(a[chosen], train.labels.numpy()[chosen])
        shares.append((model.predict(b) == few.labels.numpy()).mean())
    assert found.value == pytest.approx(np.mean(shares), abs=1e-12)
    assert found.spread == pytest.approx(
        math.sqrt(sum((s - np.mean(shares)) ** 2 for s in shares) / 3), abs=1e-12
    )
    assert found.spread > 0
    assert 0.5 < found.value < 0.9


@pytest.mark.parametrize("labels", [45, 2000])
def test_no_probe_where_the_labels_cannot_be_shared_out(held_out, labels):
    few = held_out[::10]
    assert Evaluator().linear_probe(lambda x: x, few, few, labels=labels) == []


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
