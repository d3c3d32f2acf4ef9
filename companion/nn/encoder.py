"""A transformer in which every position sees every other: for sets of patches, not for sequences in time.

References:
    Vaswani et al., Attention Is All You Need, 2017: the encoder.
    Dosovitskiy et al., An Image is Worth 16x16 Words, 2021 (ViT): norm before each part, GELU, patches.

The attention itself is `companion.nn.attention.attend`, without a mask. No position is added here: whoever
makes the tokens does that, because only they know where a token comes from.

Shapes: `b` sets, `t` tokens, `h` heads, `c` channels (the width).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.nn.attention import attend, attention_weights, merge_heads, split_heads


class SelfAttention(nn.Module):
    """Multi-head self-attention in which every token sees all of them.

    Args:
        width: channels of the input and the output, a multiple of `heads`.
        heads: number of heads.

    Raises:
        ValueError: if `width` cannot be cut into `heads` equal parts.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(
                f"width {width} cannot be cut into {heads} equal heads: choose heads of at least 1 that divide "
                "the width"
            )
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def _queries_keys_values(self, x: Tensor) -> list[Tensor]:
        return [split_heads(part, self.heads) for part in self.project_in(x).chunk(3, dim=-1)]

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Mixes every token with all of them."""
        q, k, v = self._queries_keys_values(x)
        return self.project_out(merge_heads(attend(q, k, v, causal=False)))

    def weights(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b h t t"]:
        """Returns the attention weights on `x`, for looking inside."""
        q, k, _ = self._queries_keys_values(x)
        return attention_weights(q, k, causal=False)


class EncoderBlock(nn.Module):
    """Attention, then a perceptron at each token; both see a normed input and add to it.

    Args:
        width: channels, a multiple of `heads`.
        heads: number of heads.
        expansion: hidden channels of the perceptron, in multiples of the width.
    """

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Returns the tokens after both parts."""
        x = x + self.attention(self.norm_1(x))
        return x + self.contract(F.gelu(self.expand(self.norm_2(x)), approximate="tanh"))
