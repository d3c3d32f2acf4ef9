"""Measures of trained networks that recipes share, batch by batch and over as many processes as there are.

Data are cut into batches of a fixed size, and batch number i is worked on by process i mod (number of processes)
with randomness derived from the seed and i. Results come together in their order and are only then averaged, so
the numbers do not depend on how many processes there are.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int64
from lightning_fabric import Fabric
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from companion.data.images import ImageDataset, to_float
from companion.devices import default_device
from companion.metrics import fid, inception_score, precision_recall, psnr, sharpness
from companion.metrics.features import digit_features, digit_probabilities
from companion.randomness import Source, derive

# Takes how many and the randomness; returns images in [−1, 1].
Sample = Callable[[int, Source], Tensor]
# Takes images in [−1, 1], the randomness and, where `labelled` is set, the labels; returns one row, or one number,
# an image.
Measure = Callable[..., Tensor]


class Evaluator:
    """Where, on how many samples and with which seed to evaluate.

    Args:
        fabric: the processes, as `launch` gives them; by default one process on the default device.
        samples: how many images are drawn from a generative network.
        batch_size: images at a time.
        seed: of all that is drawn.

    Raises:
        ValueError: if there are fewer than 10 samples, or no images in a batch.
    """

    def __init__(
        self,
        fabric: Fabric | None = None,
        *,
        samples: int = 1000,
        batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        if samples < 10:
            raise ValueError(f"samples must be at least 10, got {samples}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.fabric = fabric
        self.device = fabric.device if fabric else default_device()
        self.rank = fabric.global_rank if fabric else 0
        self.processes = fabric.world_size if fabric else 1
        self.samples, self.batch_size, self.seed = samples, batch_size, seed

    # --- Batches over processes -------------------------------------------------------------------------------

    def _mine(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yields number, start and stop of the batches that this process works on."""
        batches = -(-count // self.batch_size)
        for i in range(self.rank, batches, self.processes):
            yield i, i * self.batch_size, min((i + 1) * self.batch_size, count)

    def _together(self, parts: list[Tensor], count: int) -> Tensor:
        """Returns the rows of all processes in the order of their batches, on the CPU."""
        if self.fabric is None or self.processes == 1:
            return torch.cat([part.cpu() for part in parts])
        rounds = -(-count // (self.batch_size * self.processes))
        # A process without a batch needs to know how a row looks; the first process always has one.
        row = self.fabric.broadcast(parts[0][:1] if parts else None, src=0)
        padded = row.new_zeros((rounds, self.batch_size, *row.shape[1:])).to(self.device)
        for slot, part in zip(padded, parts, strict=False):
            slot[: len(part)] = part
        everything = self.fabric.all_gather(padded).transpose(0, 1)
        return everything.flatten(0, 2)[:count].cpu()

    @torch.no_grad()
    def each(
        self,
        measure: Measure,
        dataset: ImageDataset,
        name: str = "each",
        *,
        labelled: bool = False,
    ) -> Tensor:
        """Returns `measure` of every image of a dataset, in order, on the CPU.

        Args:
            measure: takes images in [−1, 1] and a source; returns one row or number an image.
            dataset: the images.
            name: what the randomness is for; different names draw different numbers.
            labelled: give `measure` the images' labels as well, as a third argument.
        """
        parts = []
        for i, start, stop in self._mine(len(dataset)):
            x = to_float(dataset.images[start:stop].to(self.device))
            labels = [dataset.labels[start:stop].to(self.device)] if labelled else []
            parts.append(measure(x, derive(self.seed, name, i, device=self.device), *labels))
        return self._together(parts, len(dataset))

    def mean(
        self,
        measure: Measure,
        dataset: ImageDataset,
        name: str = "mean",
        *,
        labelled: bool = False,
    ) -> float:
        """Returns the mean of `measure` over a dataset, such as a likelihood bound in nats an image."""
        return float(self.each(measure, dataset, name, labelled=labelled).double().mean())

    @torch.no_grad()
    def draw(
        self,
        sample: Sample,
        count: int | None = None,
        measure: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Draws images, and returns them or what is measured of each, in order, on the CPU.

        Args:
            sample: takes how many and a source; returns images in [−1, 1].
            count: how many; by default `samples`.
            measure: of images, one row an image; without it the images themselves are returned.
        """
        count = count or self.samples
        parts = []
        for i, start, stop in self._mine(count):
            x = sample(stop - start, derive(self.seed, "samples", i, device=self.device))
            x = x.float().clamp(-1, 1)
            parts.append(measure(x) if measure else x)
        return self._together(parts, count)

    # --- What is measured -------------------------------------------------------------------------------------

    def sample_quality(self, sample: Sample, reference: ImageDataset) -> dict[str, float]:
        """Measures drawn digits beside real ones, by the features of the frozen digit classifier.

        Args:
            sample: takes how many and a source; returns grey 28×28 images in [−1, 1].
            reference: real digits, such as the 1,000 that no checkpoint has seen.

        Returns:
            FID, Inception Score (10 parts), precision, recall (k = 3), the mean sharpness as a share of the real
            one, and the number of samples, on which all of these depend. Where the reference holds no digits, of
            which that classifier knows nothing, only sharpness.
        """
        digits = reference.name in ("digits", "mnist") and reference.split != "all"

        def rows(x: Tensor) -> Tensor:
            sharp = sharpness(x).float()[:, None]
            if not digits:
                return sharp
            return torch.cat([sharp, digit_probabilities(x), digit_features(x)], dim=1)

        real = self.each(lambda x, _: rows(x), reference, "reference")
        fake = self.draw(sample, measure=rows)
        result: dict[str, float] = {"generated samples": float(self.samples)}
        if digits:
            agreement = precision_recall(real[:, 11:], fake[:, 11:])
            result |= {
                "FID": fid(real[:, 11:], fake[:, 11:]),
                "Inception Score": inception_score(fake[:, 1:11]).mean,
                "precision": agreement.precision,
                "recall": agreement.recall,
            }
        ratio = fake[:, 0].double().mean() / real[:, 0].double().mean()
        return result | {"sharpness, share of real": float(ratio)}

    def reconstruction(
        self, reconstruct: Measure, dataset: ImageDataset, name: str = "reconstruction"
    ) -> dict[str, float]:
        """Measures how well images come back: mean squared error of a pixel in [−1, 1], and the mean PSNR in dB."""

        def errors(x: Tensor, source: Source) -> Tensor:
            y = reconstruct(x, source).float().clamp(-1, 1)
            mse = (x - y).square().mean(dim=(1, 2, 3))
            return torch.stack([mse.double(), psnr(x, y, data_range=2.0)], dim=1)

        mse, decibels = self.each(errors, dataset, name).mean(dim=0).tolist()
        where = f"{dataset.name}/{dataset.split}"
        return {f"{where} reconstruction MSE": mse, f"{where} reconstruction PSNR, dB": decibels}

    def accuracy(
        self, logits: Callable[[Tensor], Tensor], dataset: ImageDataset
    ) -> dict[str, float]:
        """Measures the share of images whose largest logit is at their label."""
        best = self.each(lambda x, _: logits(x).argmax(dim=1), dataset, "accuracy")
        right = (best == dataset.labels.cpu()).double().mean()
        return {f"{dataset.name}/{dataset.split} accuracy": float(right)}

    def linear_probe(
        self,
        encode: Callable[[Tensor], Tensor],
        train: ImageDataset,
        test: ImageDataset,
        *,
        labels: int = 100,
        draws: int = 5,
    ) -> dict[str, float]:
        """Measures features by a linear classifier that sees a few labels only.

        Args:
            encode: from images in [−1, 1] to one row of features (or anything that flattens to one) an image.
            train: where the labelled images are drawn from, the same number of each class.
            test: where the accuracy is measured.
            labels: how many labels the classifier sees.
            draws: how often they are drawn anew.

        The classifier is scikit-learn's logistic regression on standardised features, with its own penalty.

        Returns:
            The mean accuracy over the draws, and its standard deviation; nothing where the classes cannot share the
            labels evenly, or one has too few images, as may be with images of your own.
        """
        counts = train.labels.unique(return_counts=True)[1]
        if labels % len(counts) or int(counts.min()) * len(counts) < labels or len(counts) < 2:
            return {}
        a, b = (
            self.each(lambda x, _: encode(x).flatten(1).double(), data, "probe").numpy()
            for data in (train, test)
        )
        truth, answers = train.labels.cpu().numpy(), test.labels.cpu().numpy()
        shares = []
        for draw in range(draws):
            chosen = labelled(train.labels, labels, derive(self.seed, "labels", draw))
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            classifier.fit(a[chosen], truth[chosen])
            shares.append(classifier.score(b, answers))
        accuracy = torch.tensor(shares, dtype=torch.float64)
        key = f"{test.name}/{test.split} linear probe accuracy, {labels} labels"
        return {key: float(accuracy.mean()), f"{key}, spread": float(accuracy.std(correction=0))}


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
