"""A transformer in which every position sees every other: for sets of patches, not for sequences in time.

References:
    Vaswani et al., Attention Is All You Need, 2017: the encoder.
    Dosovitskiy et al., An Image is Worth 16x16 Words, 2021 (ViT): norm before each part, GELU, patches.

No position is added here: whoever makes the tokens does that, because only they know where a token comes from.

Shapes: `b` sets, `t` tokens, `h` heads, `c` channels (the width).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.nn.attention import SelfAttention


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
