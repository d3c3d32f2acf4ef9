"""The Inception Score (Salimans et al., "Improved Techniques for Training GANs", 2016).

IS = exp( E_{x ~ G} [ KL( p(y|x) || p(y) ) ] ), with the expectation over *generated* x inside the exponential
and p(y) the mean of p(y|x) over them. In entropies, log IS = H(y) − H(y|x). With K classes it lies between 1
and K.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion.metrics._checks import as_float64, rows
from companion.randomness import derive

# How far a row's sum may be from one: probabilities that were rounded to half precision, and to bfloat16, whose
# eight bits leave a relative error of up to 2⁻⁹ in each, and as much again in a softmax that adds them up.
HALF, BFLOAT16 = 2e-3, 2.0**-7


class InceptionScore(NamedTuple):
    """Mean and standard deviation of the score over the splits (the population's, as in the paper's code)."""

    mean: float
    std: float


class ClassEntropies(NamedTuple):
    """The two terms of log IS, in nats: the entropy of the mean prediction, the mean entropy of a prediction."""

    marginal: float
    conditional: float


def _probabilities(probs: Any) -> Tensor:
    rows("probs", probs, "n, classes", "class probabilities", "probabilities")
    p = as_float64("probs", probs, 2, "n, classes")
    low, high = float(p.min()), float(p.max())
    if low < 0 or high > 1 + 1e-3:
        raise ValueError(
            f"probs must lie in [0, 1], got [{low:g}, {high:g}]. If these are logits, apply softmax(dim=1)."
        )
    sums = p.sum(dim=1)
    worst = int((sums - 1).abs().argmax())
    rounded = bool((p.to(torch.bfloat16) == p).all())
    if abs(float(sums[worst]) - 1) > (BFLOAT16 if rounded else HALF):
        raise ValueError(
            f"each row of probs must sum to one; row {worst} sums to {float(sums[worst]):g}. Apply "
            "softmax(dim=1) to logits, or divide each row by its sum."
        )
    return p / sums[:, None]


def _entropies(p: Tensor) -> tuple[Tensor, Tensor]:
    # entr(p) = −p log p, with 0 at p = 0: one-hot predictions need no epsilon.
    marginal = torch.special.entr(p.mean(dim=0)).sum()
    conditional = torch.special.entr(p).sum(dim=1).mean()
    return marginal, conditional


def class_entropies(
    probs: Float[Tensor, "n classes"] | Float[np.ndarray, "n classes"],
) -> ClassEntropies:
    """Returns H(y) and H(y|x) in nats; their difference is log IS for a single split.

    Args:
        probs: one row of class probabilities an image.

    Raises:
        TypeError: if they are not real numbers.
        ValueError: if the shape is wrong, or a row is no probability distribution.
    """
    marginal, conditional = _entropies(_probabilities(probs))
    return ClassEntropies(float(marginal), float(conditional))


def inception_score(
    probs: Float[Tensor, "n classes"] | Float[np.ndarray, "n classes"],
    splits: int = 10,
    generator: torch.Generator | None = None,
    *,
    shuffle: bool = True,
    seed: int = 0,
) -> InceptionScore:
    """Returns the mean and the standard deviation of the Inception Score over equal parts of the samples.

    The samples are shuffled first: in parts of samples that are sorted by class, as those of a data set often
    are, every p(y) is one class and the score is near 1. Each part estimates p(y) from its own samples, which
    makes small parts score lower.

    Args:
        probs: class probabilities of the generated samples, one row each, summing to one.
        splits: number of parts; the paper uses 10.
        generator: draws the order; by default one that is a function of the seed.
        shuffle: False keeps the order, as the paper's code does: the parts are then consecutive.
        seed: of the order, where no generator is given.

    Returns:
        Mean and standard deviation (ddof 0), between 1 and the number of classes.

    Raises:
        TypeError: if `probs` does not hold real numbers.
        ValueError: if the shape is wrong, a row is no probability distribution, there are fewer samples than
            splits, or a generator is given for an order that is kept.
    """
    p = _probabilities(probs)
    n = len(p)
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}.")
    if n < splits:
        raise ValueError(f"{splits} splits need at least as many samples, got {n}; lower splits.")
    if generator is not None and not shuffle:
        raise ValueError("shuffle=False keeps the order; leave out the generator, or shuffle.")
    if shuffle:
        source = derive(seed, "inception score") if generator is None else generator
        p = p[torch.randperm(n, generator=source, device=source.device).to(p.device)]
    scores = []
    for i in range(splits):
        marginal, conditional = _entropies(p[i * n // splits : (i + 1) * n // splits])
        scores.append((marginal - conditional).clamp(min=0).exp())
    score = torch.stack(scores)
    return InceptionScore(float(score.mean()), float(score.std(correction=0)))
