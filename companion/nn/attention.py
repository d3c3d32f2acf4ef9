"""Attention: the function, its weights, a cache, and self-attention, two-way and causal.

References:
    Vaswani et al., Attention Is All You Need, 2017: Eq. 1 (scaled dot products), 3.2.2 (heads).

Deviation: none in the arithmetic. The fused kernel of PyTorch does it, and `attention_weights`
spells it out for those who want to look at the weights; the tests hold the two together.

Shapes: `b` sequences, `h` heads, `t` queries, `s` keys, `d` numbers per head, `c = h * d` channels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Bool[Tensor, "t s"]:
    """Says which key each query may see when the queries are the last positions of the keys.

    Args:
        queries: number of query positions, at most `keys`.
        keys: number of key positions.
        device: where the mask is made.

    Returns:
        True where key `j` is no later than query `i`, that is `j <= i + keys - queries`.

    Raises:
        ValueError: if there are more queries than keys.
    """
    if queries > keys:
        raise ValueError(
            f"{queries} queries cannot be the last positions of {keys} keys: "
            "a causal mask needs queries <= keys"
        )
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attend(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    *,
    causal: bool,
    dropout: float | int = 0.0,
    mask: Bool[Tensor, "t s"] | None = None,
) -> Float[Tensor, "b h t d"]:
    """Averages the values with weights softmax(q k^T / sqrt(d)) (Vaswani et al., Eq. 1).

    Args:
        q: queries. k: keys. v: values.
        causal: hide later keys; the queries are then the *last* `t` of the `s` positions, so that
            the same call serves the full pass (`t == s`) and a step with cached keys (`t < s`).
        dropout: share of the weights that is dropped; 0 outside training.
        mask: True where a query may see a key, in place of `causal`; each query must see one key at least.

    Returns:
        One weighted mean of values for each query.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    if not causal or queries == 1:  # a single last query sees every key: no mask is needed
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    if queries == keys:  # the flag lets the fused kernel skip the hidden half
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    mask = causal_mask(queries, keys, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def attention_weights(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    *,
    causal: bool,
    mask: Bool[Tensor, "t s"] | None = None,
) -> Float[Tensor, "b h t s"]:
    """Returns the weights that `attend` uses without showing them; every row sums to one."""
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    if mask is None and causal:
        mask = causal_mask(q.shape[-2], k.shape[-2], q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1)


def split_heads(x: Float[Tensor, "b t c"], heads: int) -> Float[Tensor, "b h t d"]:
    """Cuts the channels into `heads` equal parts, one per head: "b t (h d) -> b h t d"."""
    # einops would say it in one line, and take a tenth of the time of a step of drawing.
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b t c"]:
    """Puts the heads' parts back side by side: "b h t d -> b t (h d)", the inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


class KeyValueCache:
    """The keys and values of the positions already seen by one attention layer.

    Memory for `capacity` positions is taken once, at the first `append`, in the shape, type and
    device of what is appended; so a step costs no copy of the past.

    Attributes:
        capacity: the largest number of positions.
        length: the number of positions held now.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a cache needs a capacity of at least 1 position, not {capacity}")
        self.capacity = capacity
        self.length = 0
        self._store: Tensor | None = None

    def append(
        self, k: Float[Tensor, "b h t d"], v: Float[Tensor, "b h t d"]
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
        """Adds the keys and values of new positions and returns those of all positions so far.

        Raises:
            ValueError: if the cache is full, or holds another number of sequences or another form of head.
        """
        end = self.length + k.shape[-2]
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {self.length} of {self.capacity} positions and cannot take "
                f"{k.shape[-2]} more: make it larger or start a new one"
            )
        batch, heads, _, size = k.shape
        if self._store is None:
            self._store = k.new_empty(2, batch, heads, self.capacity, size)
        held = (self._store.shape[1], self._store.shape[2], self._store.shape[4])
        # An assignment would spread one sequence over all that are held.
        if (batch, heads, size) != held:
            raise ValueError(
                f"the cache holds {held[0]} sequence(s) in {held[1]} heads of {held[2]} numbers, got {batch} in "
                f"{heads} of {size}: go on with the same batch, or start new caches."
            )
        self._store[0, :, :, self.length : end] = k
        self._store[1, :, :, self.length : end] = v
        self.length = end
        return self._store[0, :, :, :end], self._store[1, :, :, :end]


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: channels of the input and the output, a multiple of `heads`.
        heads: number of heads.
        dropout: dropout on the weights and on the output, in training only.
        causal: every position sees itself and what came before; otherwise it sees all.
        mask: for sparse attention: True where position i (row) may see position j (column). Causal attention sees of
            these only what came before, and itself in any case.

    Raises:
        ValueError: if `width` cannot be cut into `heads` equal parts, or a position may see nothing.
    """

    may_see: Tensor | None

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float | int = 0.0,
        *,
        causal: bool = False,
        mask: Bool[Tensor, "p p"] | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(
                f"width {width} cannot be cut into {heads} equal heads: "
                "choose heads of at least 1 that divide the width"
            )
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)
        if mask is not None and causal:
            mask = mask.tril() | torch.eye(len(mask), dtype=torch.bool, device=mask.device)
        if mask is not None and not mask.any(dim=1).all():
            blind = int((~mask.any(dim=1)).nonzero()[0])
            raise ValueError(f"position {blind} may see nothing: let each see itself at least.")
        # A function of the settings, so no checkpoint holds it.
        self.register_buffer("may_see", mask, persistent=False)

    def queries_keys_values(
        self, x: Float[Tensor, "b t c"]
    ) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t d"], Float[Tensor, "b h t d"]]:
        """Projects the input to the queries, keys and values of every head."""
        q, k, v = self.project_in(x).chunk(3, dim=-1)
        return split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)

    def mix(
        self,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h s d"],
        v: Float[Tensor, "b h s d"],
    ) -> Float[Tensor, "b t c"]:
        """Returns the output for given queries, keys and values; the queries are the last positions of the keys."""
        dropout = self.dropout if self.training else 0.0
        mask = self._mask(q.shape[-2], k.shape[-2])
        mixed = merge_heads(attend(q, k, v, causal=self.causal, dropout=dropout, mask=mask))
        out = self.project_out(mixed)
        return F.dropout(out, dropout) if dropout else out

    def _mask(self, queries: int, keys: int) -> Tensor | None:
        if self.may_see is None:
            return None
        if keys > len(self.may_see):
            raise ValueError(
                f"the mask of this attention is for {len(self.may_see)} positions, got {keys}: build it with a larger "
                "one."
            )
        return self.may_see[keys - queries : keys, :keys]

    def forward(
        self, x: Float[Tensor, "b t c"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "b t c"]:
        """Mixes every position with those it sees.

        Args:
            x: the sequence; with a cache, only its positions that the cache has not seen.
            cache: keys and values of the earlier positions, for causal attention only; it is extended in place.

        Raises:
            ValueError: if a cache is given to attention that is not causal, or does not fit the sequence.
        """
        q, k, v = self.queries_keys_values(x)
        if cache is not None:
            if not self.causal:
                raise ValueError(
                    "attention to all positions cannot go on from a cache: later ones would be missing."
                )
            k, v = cache.append(k, v)
        return self.mix(q, k, v)

    def weights(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b h t t"]:
        """Returns the attention weights on `x`, for looking inside."""
        q, k, _ = self.queries_keys_values(x)
        mask = self._mask(q.shape[-2], k.shape[-2])
        return attention_weights(q, k, causal=self.causal, mask=mask)
