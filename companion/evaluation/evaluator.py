"""Measures of trained networks that recipes share, batch by batch and over as many processes as there are.

Every image has random numbers of its own, a function of the seed, of what they are for and of the image's number. So
the numbers that come out depend neither on the batch size nor on how many processes there are, except for the
rounding of sums: batches are dealt out to the processes in turn, and results come together in their order.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar, overload, runtime_checkable

import torch
from jaxtyping import Int64
from lightning_fabric import Fabric
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm

from companion.data.batch import Batch
from companion.data.images import ImageDataset
from companion.devices import default_device
from companion.measurement import About, Measurement
from companion.metrics import (
    fid,
    inception_score,
    kid,
    precision_recall,
    psnr,
    sharpness,
)
from companion.metrics.extractors import Extractor, default_extractor
from companion.randomness import PerImage, derive
from companion.training.processes import gather

# What a measure returns: a row, or a number, for each image; or several such, by name.
Rows = TypeVar("Rows", Tensor, dict[str, Tensor])
# Draws images in [−1, 1], given how many and where their random numbers come from.
Sample = Callable[[int, PerImage], Tensor]

# More samples than any published evaluation takes; features of so many still fit into memory.
MOST_SAMPLES = 1_000_000
LEAST_SAMPLES = 10  # the parts of an Inception Score
NEIGHBOURS = 3  # of precision and recall


@runtime_checkable
class Sampler(Protocol):
    """A network that draws images."""

    def sample(self, n: int, source: PerImage, /) -> Tensor:
        """Returns images in [−1, 1]."""


class Evaluator:
    """Where, on how many samples and with which seed to evaluate.

    Args:
        fabric: the processes, as `launch` gives them; by default one process on the default device.
        samples: how many images are drawn from a generative network.
        batch_size: images at a time; it changes the numbers by rounding only.
        seed: of all that is drawn.
        extractor: of the features under FID and its like; by default that of the data's kind, if there is one.
        progress: show a bar for each measure; None does where standard error is a terminal.

    Raises:
        ValueError: if the number of samples is below 10 or above a million, there are no images in a batch, or the
            seed is negative.
    """

    def __init__(
        self,
        fabric: Fabric | None = None,
        *,
        samples: int = 1000,
        batch_size: int = 100,
        seed: int = 0,
        extractor: Extractor | None = None,
        progress: bool | None = False,
    ) -> None:
        if samples < LEAST_SAMPLES:
            raise ValueError(f"samples must be at least {LEAST_SAMPLES}, got {samples}.")
        if samples > MOST_SAMPLES:
            raise ValueError(f"samples must be at most {MOST_SAMPLES:,}, got {samples:,}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}.")
        self.fabric = fabric
        self.device = fabric.device if fabric else default_device()
        self.rank = fabric.global_rank if fabric else 0
        self.processes = fabric.world_size if fabric else 1
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.extractor, self.progress = extractor, progress

    # --- Batches over processes -------------------------------------------------------------------------------

    def _mine(self, count: int, what: str) -> Iterator[tuple[int, int]]:
        """Yields start and stop of the batches that this process works on."""
        size = self.batch_size
        starts = range(self.rank * size, count, self.processes * size)
        hidden = True if self.rank else {None: None, True: False, False: True}[self.progress]
        with tqdm(total=count, desc=what, unit=" images", disable=hidden, leave=False) as bar:
            for start in starts:
                stop = min(start + size, count)
                yield start, stop
                bar.update(min(self.processes * size, count - start))

    def _together(self, parts: list[Tensor], count: int) -> Tensor:
        """Returns the rows of all processes in the order of their batches, on the CPU."""
        if self.fabric is None or self.processes == 1:
            return torch.cat([part.cpu() for part in parts])
        rounds = -(-count // (self.batch_size * self.processes))
        # A process without a batch needs to know what a row looks like; rank zero always has one.
        row = self.fabric.broadcast(parts[0][:1] if parts else None, src=0)
        assert row is not None
        padded = row.new_zeros((rounds, self.batch_size, *row.shape[1:])).to(self.device)
        for slot, part in zip(padded, parts, strict=False):
            slot[: len(part)] = part
        everything = gather(self.fabric, padded)
        return everything.transpose(0, 1).flatten(0, 2)[:count].cpu()

    @overload
    def _collect(self, parts: list[Tensor], count: int) -> Tensor: ...

    @overload
    def _collect(self, parts: list[dict[str, Tensor]], count: int) -> dict[str, Tensor]: ...

    def _collect(
        self, parts: list[Tensor] | list[dict[str, Tensor]], count: int
    ) -> Tensor | dict[str, Tensor]:
        """Puts the parts of all processes together, name by name where the measure has several."""
        if self.fabric is not None and self.processes > 1:
            names = self.fabric.broadcast(_names(parts[0]) if parts else None, src=0)
        else:
            names = _names(parts[0])
        if names is None:
            return self._together([part for part in parts if isinstance(part, Tensor)], count)
        named = [part for part in parts if isinstance(part, dict)]
        return {name: self._together([part[name] for part in named], count) for name in names}

    @torch.no_grad()
    def each(
        self,
        measure: Callable[[Batch, PerImage], Rows],
        dataset: ImageDataset,
        name: str = "each",
    ) -> Rows:
        """Returns `measure` of every sample of a dataset, in order, on the CPU.

        Args:
            measure: takes what a loss is given, a batch with all that the data have (images in [−1, 1], labels …),
                and a source of random numbers; returns one row or number per sample, or several by name.
            dataset: the samples.
            name: what the randomness is for; different names draw different numbers.
        """
        parts: list[Rows] = []
        for start, stop in self._mine(len(dataset), name):
            batch = dataset.batch_at(torch.arange(start, stop), self.device)
            parts.append(measure(batch, PerImage(self.seed, start, stop, name)))
        return self._collect(parts, len(dataset))

    def mean(
        self,
        measure: Callable[[Batch, PerImage], Tensor],
        dataset: ImageDataset,
        name: str = "mean",
    ) -> float:
        """Returns the mean of `measure` over a dataset, such as a likelihood bound in nats per image."""
        return float(self.each(measure, dataset, name).double().mean())

    @overload
    def draw(self, sample: Sample, count: int | None = None) -> Tensor: ...

    @overload
    def draw(
        self, sample: Sample, count: int | None = None, *, measure: Callable[[Tensor], Rows]
    ) -> Rows: ...

    @torch.no_grad()
    def draw(
        self,
        sample: Sample,
        count: int | None = None,
        *,
        measure: Callable[[Tensor], Rows] | None = None,
    ) -> Rows | Tensor:
        """Draws images, and returns them or what is measured of each, in order, on the CPU.

        They are those of `network.sample(count, seed=…)` with this evaluator's seed, whatever the batch size.

        Args:
            sample: takes how many and a source; returns images in [−1, 1].
            count: how many; by default `samples`.
            measure: of images, one row for each, or several by name; without it the images themselves are returned.

        Raises:
            ValueError: if there are none to draw.
        """
        count = self.samples if count is None else count
        if count < 1:
            raise ValueError(f"at least one image must be drawn, got {count}.")
        if measure is None:
            return self._drawn(sample, count, lambda x: x)
        return self._drawn(sample, count, measure)

    def _drawn(self, sample: Sample, count: int, measure: Callable[[Tensor], Rows]) -> Rows:
        parts: list[Rows] = []
        for start, stop in self._mine(count, "samples"):
            x = sample(stop - start, PerImage(self.seed, start, stop)).float().clamp(-1, 1)
            parts.append(measure(x))
        return self._collect(parts, count)

    # --- What is measured -------------------------------------------------------------------------------------

    def extractor_for(self, dataset: ImageDataset) -> Extractor | None:
        """Returns the extractor that was given, or that of the data's kind; None where there is none."""
        return self.extractor or default_extractor(dataset)

    def check(self, reference: ImageDataset) -> None:
        """Makes sure that `sample_quality` can be measured beside these images.

        Raises:
            ValueError: if they are too few.
        """
        if self.extractor_for(reference) is not None and len(reference) <= NEIGHBOURS:
            raise ValueError(
                f"precision and recall look at {NEIGHBOURS} neighbours of every image, so they need more than "
                f"{NEIGHBOURS} images, but {_place(reference)} has {len(reference)}. Measure on more."
            )

    def sample_quality(
        self, sample: Sample, reference: ImageDataset, *, of: str = ""
    ) -> list[Measurement]:
        """Measures drawn images beside real ones.

        Args:
            sample: takes how many and a source; returns images in [−1, 1] of the reference's shape.
            reference: real images that the network has not seen.
            of: what was drawn, where a network can draw in several ways.

        Returns:
            FID, KID, Inception Score (10 parts; only where the extractor has classes), precision, recall (k = 3) and
            the mean sharpness as a share of the real one. Where there is no extractor, only sharpness.
        """
        extractor = self.extractor_for(reference)

        def rows(x: Tensor) -> dict[str, Tensor]:
            found = {"sharpness": sharpness(x)}
            return found if extractor is None else found | seen_by(extractor, x)

        real = self.each(lambda batch, _: rows(batch.require_images()), reference, "reference")
        fake = self.draw(sample, measure=rows)
        about = About(
            data=reference.name,
            split=reference.split,
            samples=self.samples,
            seed=self.seed,
            of=of,
        )
        result = []
        if extractor is not None:
            a, b = real["features"], fake["features"]
            agreement = precision_recall(a, b, NEIGHBOURS)
            result += [
                Measurement(name="FID", value=fid(a, b), better="lower", **about),
                Measurement(name="KID", value=kid(a, b).mean, better="lower", **about),
                Measurement(name="precision", value=agreement.precision, better="higher", **about),
                Measurement(name="recall", value=agreement.recall, better="higher", **about),
            ]
        if "probabilities" in fake:
            score = inception_score(fake["probabilities"])
            result.append(
                Measurement(
                    name="Inception Score",
                    value=score.mean,
                    spread=score.std,
                    better="higher",
                    **about,
                )
            )
        ratio = fake["sharpness"].double().mean() / real["sharpness"].double().mean()
        result.append(Measurement(name="sharpness, share of real", value=float(ratio), **about))
        return result

    def reconstruction(
        self,
        reconstruct: Callable[[Tensor, PerImage], Tensor],
        dataset: ImageDataset,
        *,
        of: str = "",
    ) -> list[Measurement]:
        """Measures how well images come back: mean squared error of a pixel in [−1, 1], and the mean PSNR in dB.

        Args:
            reconstruct: from images in [−1, 1] and a source to images; these are clamped to [−1, 1].
            dataset: the images.
            of: what exactly is measured, such as "noise 0.5"; it names the random numbers as well.
        """

        def errors(batch: Batch, source: PerImage) -> dict[str, Tensor]:
            x = batch.require_images()
            y = reconstruct(x, source).float().clamp(-1, 1)
            mse = (x - y).square().mean(dim=(1, 2, 3))
            return {"mse": mse.double(), "psnr": psnr(x, y, data_range=2.0).double()}

        found = self.each(errors, dataset, of or "reconstruction")
        about = about_data(dataset, of)
        return [
            Measurement(
                name="reconstruction MSE", value=float(found["mse"].mean()), better="lower", **about
            ),
            Measurement(
                name="reconstruction PSNR",
                value=float(found["psnr"].mean()),
                unit="dB",
                better="higher",
                **about,
            ),
        ]

    def accuracy(
        self, logits: Callable[[Tensor], Tensor], dataset: ImageDataset
    ) -> list[Measurement]:
        """Measures the share of images whose largest logit is at their label."""
        best = self.each(
            lambda batch, _: logits(batch.require_images()).argmax(dim=1), dataset, "accuracy"
        )
        right = float(best.eq(dataset.labels.cpu()).double().mean())
        return [Measurement(name="accuracy", value=right, better="higher", **about_data(dataset))]

    def linear_probe(
        self,
        encode: Callable[[Tensor], Tensor],
        train: ImageDataset,
        test: ImageDataset,
        *,
        labels: int = 100,
        draws: int = 5,
    ) -> list[Measurement]:
        """Measures features by a linear classifier that sees a few labels only.

        Args:
            encode: from images in [−1, 1] to one row of features (or anything that flattens to one) per image.
            train: where the labelled images are drawn from, the same number of each class.
            test: where the accuracy is measured.
            labels: how many labels the classifier sees.
            draws: how often they are drawn anew.

        The classifier is scikit-learn's logistic regression on standardised features, with its own penalty.

        Returns:
            The mean accuracy over the draws, whose spread is their standard deviation (divided by their number, as
            they are all there are); nothing where the classes cannot share the labels evenly, or one has too few
            images, as may be with images of your own.
        """
        counts = train.labels.unique(return_counts=True)[1]
        if labels % len(counts) or int(counts.min()) * len(counts) < labels or len(counts) < 2:
            return []

        def codes(batch: Batch, source: PerImage) -> Tensor:
            return encode(batch.require_images()).flatten(1).double()

        a, b = (self.each(codes, data, "probe").numpy() for data in (train, test))
        truth, answers = train.labels.cpu().numpy(), test.labels.cpu().numpy()
        shares = []
        for draw in range(draws):
            chosen = labelled(train.labels, labels, derive(self.seed, "labels", draw))
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            classifier.fit(a[chosen], truth[chosen])
            shares.append(classifier.score(b, answers))
        accuracy = torch.tensor(shares, dtype=torch.float64)
        return [
            Measurement(
                name="linear probe accuracy",
                value=float(accuracy.mean()),
                spread=float(accuracy.std(correction=0)),
                better="higher",
                **about_data(test, f"{labels} labels", self.seed),
            )
        ]


def seen_by(extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
    """Returns what an extractor makes of images: their features and, where it has classes, their probabilities."""
    features, probabilities = extractor.both(images)
    found = {"features": features}
    return found if probabilities is None else found | {"probabilities": probabilities}


def _names(rows: Tensor | dict[str, Tensor]) -> list[str] | None:
    """Returns the names of a measure's results; None where there is one without a name."""
    return list(rows) if isinstance(rows, dict) else None


def _place(dataset: ImageDataset) -> str:
    return f"{dataset.name}/{dataset.split}"


def about_data(dataset: ImageDataset, of: str = "", seed: int | None = None) -> About:
    """Returns what a measurement of all images of a data set says of them, as its keyword arguments."""
    return About(data=dataset.name, split=dataset.split, samples=len(dataset), of=of, seed=seed)


def labelled(
    labels: Int64[Tensor, " n"], count: int, generator: torch.Generator
) -> Int64[Tensor, " m"]:
    """Returns the positions of `count` samples, equally many of each class, drawn at random.

    Raises:
        ValueError: if the classes do not divide the number, or one has too few samples.
    """
    classes = labels.unique().tolist()
    each, rest = divmod(count, len(classes))
    if rest or not each:
        raise ValueError(
            f"{count} labels cannot be shared out evenly among {len(classes)} classes."
        )
    chosen = []
    for k in classes:
        members = (labels.cpu() == k).nonzero().flatten()
        if len(members) < each:
            raise ValueError(f"class {k} has {len(members)} samples, fewer than {each}.")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:each]])
    return torch.cat(chosen)
