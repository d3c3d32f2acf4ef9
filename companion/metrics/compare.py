"""Two sets of images beside each other: every distance of their features, each with an error bar."""

import statistics
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion.measurement import Better, Measurement
from companion.metrics._checks import rows
from companion.metrics.fid import fid
from companion.metrics.inception_score import inception_score
from companion.metrics.kid import kid
from companion.metrics.precision_recall import precision_recall
from companion.randomness import derive

# Parts of an Inception Score, as in the paper.
PARTS = 10


def compare(
    real_features: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
    fake_features: Float[Tensor, "m d"] | Float[np.ndarray, "m d"],
    real_probabilities: Float[Tensor, "n classes"] | Float[np.ndarray, "n classes"] | None = None,
    fake_probabilities: Float[Tensor, "m classes"] | Float[np.ndarray, "m classes"] | None = None,
    *,
    k: int = 3,
    seed: int = 0,
    repeats: int = 10,
) -> list[Measurement]:
    """Measures FID, KID, precision, recall and the Inception Score of generated samples beside real ones.

    The values are those of all samples. The spreads of FID, KID, precision and recall are standard errors by a
    delete-half jackknife (Shao and Wu, 1989): the measure is taken `repeats` times of a random half of each set,
    drawn without replacement, and the standard deviation (ddof 1) over those is given as it is. Half as many samples
    have twice the variance, and halves of the same samples share half of it, so nothing has to be scaled. It says
    how much the number would change with other samples, not how large its bias is: FID, precision and recall depend
    on the number of samples. The spread of the Inception Score is, as papers report it, the standard deviation over
    its ten parts.

    Args:
        real_features: a row for each real sample.
        fake_features: a row for each generated sample; another number of them is allowed.
        real_probabilities: class probabilities of the real samples; their Inception Score is what to compare with.
        fake_probabilities: class probabilities of the generated samples; without them there is no score.
        k: neighbours that precision and recall look at.
        seed: of the halves, and of the order in which samples are parted for the Inception Score.
        repeats: how many halves; 0 for no error bars but that of the Inception Score.

    Returns:
        FID, KID (all pairs at once, not times 1,000), precision, recall; then, where probabilities are given, the
        Inception Score, and with `of="real"` that of the real samples. `samples` counts the generated ones; a spread
        is None where a half is too small to be measured.

    Raises:
        TypeError: if an argument does not hold real numbers.
        ValueError: if images are given, dimensions differ, a value is NaN or infinite, there are fewer than two
            samples or no more than k, a row of probabilities does not sum to one, or `repeats` is 1 or negative.
    """
    if repeats < 0 or repeats == 1:
        raise ValueError(f"repeats must be 0, or at least 2 for a spread, got {repeats}.")
    rows("real_features", real_features, "n, d")
    rows("fake_features", fake_features, "m, d")
    real, fake = torch.as_tensor(real_features), torch.as_tensor(fake_features)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real_features has {real.shape[1]} dimensions and fake_features {fake.shape[1]}; extract both with "
            "the same network."
        )
    halves = [_halves(real, fake, seed, i) for i in range(repeats)]

    def both(x: Tensor, y: Tensor) -> tuple[float, ...]:
        return tuple(precision_recall(x, y, k))

    found: list[Measurement] = []
    measures: list[
        tuple[tuple[str, ...], Better, Callable[[Tensor, Tensor], tuple[float, ...]], int]
    ]
    measures = [
        (("FID",), "lower", lambda x, y: (fid(x, y),), 2),
        (("KID",), "lower", lambda x, y: (kid(x, y).mean,), 2),
        (("precision", "recall"), "higher", both, k + 1),
    ]
    for names, better, measure, least in measures:
        values = measure(real, fake)
        enough = halves and min(len(part) for part in halves[0]) >= least
        repeated = [measure(*half) for half in halves] if enough else []
        for i, name in enumerate(names):
            spread = statistics.stdev(r[i] for r in repeated) if repeated else None
            found.append(_measurement(name, values[i], better, len(fake), seed, spread))
    for of, probabilities in (("", fake_probabilities), ("real", real_probabilities)):
        if probabilities is not None:
            count = len(probabilities)
            score = inception_score(probabilities, min(PARTS, count), seed=seed)
            found.append(
                _measurement("Inception Score", score.mean, "higher", count, seed, score.std, of)
            )
    return found


def _halves(real: Tensor, fake: Tensor, seed: int, i: int) -> tuple[Tensor, Tensor]:
    """Returns a random half of each set; the two are drawn independently."""
    generator = derive(seed, "halves", i)
    first, second = (
        x[torch.randperm(len(x), generator=generator)[: len(x) // 2].to(x.device)]
        for x in (real, fake)
    )
    return first, second


def _measurement(
    name: str,
    value: float,
    better: Better,
    samples: int,
    seed: int,
    spread: float | None,
    of: str = "",
) -> Measurement:
    return Measurement(
        name=name, value=value, better=better, samples=samples, seed=seed, spread=spread, of=of
    )
