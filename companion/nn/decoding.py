"""Drawing a token from logits: temperature, top-k, top-p, and the draw itself by inversion.

References:
    Fan, Lewis and Dauphin, Hierarchical Neural Story Generation, 2018: top-k.
    Holtzman et al., The Curious Case of Neural Text Degeneration, 2020: top-p, the "nucleus".

A token is the first whose cumulative probability exceeds a uniform number (inversion). So whoever draws all uniform
numbers of a sequence beforehand gets the same tokens with a cache or without, alone or in a batch.

Shapes: `b` sequences, `v` tokens in the vocabulary.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion import checks


def check_choices(temperature: float | int, top_k: int | None, top_p: float | int | None) -> None:
    """Makes sure that the arguments of `restrict` are possible.

    Raises:
        ValueError: for a negative temperature, `top_k` below 1, or `top_p` outside (0, 1].
    """
    checks.number(0, temperature=temperature)
    if top_k is not None:
        checks.whole(1, top_k=top_k)
    if top_p is not None:
        checks.number(above=0, top_p=top_p)
        if top_p > 1:
            raise ValueError(
                f"top_p must be above 0 and at most 1 (1 leaves every token in), got {top_p!r}."
            )


def restrict(
    logits: Float[Tensor, "b v"],
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
) -> Float[Tensor, "b v"]:
    """Returns the logits of the distribution that is drawn from, in float32; −∞ where a token is excluded.

    Args:
        logits: of the model.
        temperature: divides them; 1 leaves the model's distribution, 0 keeps the likeliest token alone.
        top_k: keep the `top_k` likeliest tokens.
        top_p: of those, keep the fewest likeliest tokens whose probabilities, given that one of those kept so far is
            drawn, sum to `top_p` at least. The likeliest token always stays.

    Raises:
        ValueError: as from `check_choices`.
    """
    check_choices(temperature, top_k, top_p)
    logits = logits.float()
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, 0.0)
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept.indices, kept.values)
    if top_p is not None and top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        # What stands before a token already has the mass: the token is not needed.
        before = probabilities.cumsum(dim=-1) - probabilities
        ordered = ordered.masked_fill(before >= top_p, -math.inf)
        logits = torch.empty_like(logits).scatter(-1, places, ordered)
    return logits


def choose(logits: Float[Tensor, "b v"], u: Float[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """Returns the token of each row at which the cumulative probability first exceeds `u`.

    With `u` uniform in [0, 1) that is a draw from softmax(logits). A token of probability 0 is never drawn.

    Args:
        logits: −∞ excludes a token; one at least is finite in each row.
        u: numbers in [0, 1).
    """
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    # Rounding may leave the last sum short of 1: scaled by it, u stays below, and so within the tokens with mass.
    passed = cumulative <= (u.float() * cumulative[:, -1]).unsqueeze(-1)
    return passed.sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def draw(
    logits: Float[Tensor, "b v"],
    u: Float[Tensor, " b"],
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
) -> Int64[Tensor, " b"]:
    """Returns a draw from `restrict(logits, …)` by the uniform numbers `u`."""
    if temperature == 0:
        check_choices(temperature, top_k, top_p)
        return logits.argmax(dim=-1)
    return choose(restrict(logits, temperature, top_k, top_p), u)


def continue_sequence(
    logits: Float[Tensor, "b v"],
    advance: Callable[[Int64[Tensor, " b"]], Float[Tensor, "b v"]],
    u: Float[Tensor, "b n"],
    *,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    out: Int64[Tensor, "b n"] | None = None,
) -> Int64[Tensor, "b n"]:
    """Draws token after token.

    Args:
        logits: of the first token.
        advance: takes the token just drawn and returns the logits of the next.
        u: uniform numbers in [0, 1), one for each token.
        temperature, top_k, top_p: as for `restrict`.
        out: where the tokens go as they are drawn; a new tensor if it is left out.

    Returns:
        One token for each column of `u`.
    """
    check_choices(temperature, top_k, top_p)
    drawn = torch.empty(u.shape, dtype=torch.int64, device=logits.device) if out is None else out
    u = u.to(logits.device)
    for t in range(u.shape[1]):
        if t:
            logits = advance(drawn[:, t - 1])
        drawn[:, t] = draw(logits, u[:, t], temperature, top_k, top_p)
    return drawn
