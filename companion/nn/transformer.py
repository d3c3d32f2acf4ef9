"""The transformer's block, causal or not, and a small causal transformer: an autoregressive model of tokens.

The model writes P(x_1 … x_T) as the product of P(x_t | x_1 … x_{t-1}); every factor is a softmax over the
vocabulary, computed for all positions in one pass.

References:
    Vaswani et al., Attention Is All You Need, 2017: the block.
    Dosovitskiy et al., An Image is Worth 16x16 Words, 2021 (ViT): the same block for sets of patches.
    Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2): norm before
        each part, a last norm, learned positions, the last weights of each branch scaled by
        1/sqrt(number of branches).
    Press & Wolf, Using the Output Embedding to Improve Language Models, 2017: tied weights.

Deviations from GPT-2: the head is tied by default but can be freed, to measure what tying buys, and
the cross-entropy is computed in float32 whatever the precision of the layers.

Shapes: `b` sequences, `t` positions, `v` tokens in the vocabulary, `c` channels (the width).
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from companion import checks
from companion.nn.attention import KeyValueCache, SelfAttention


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a `CausalTransformer`.

    Attributes:
        vocabulary: number of tokens; tokens are the integers from 0 to `vocabulary - 1`.
        context: the longest sequence that the model can see, in tokens.
        width: channels of the residual stream, a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads in each block.
        expansion: hidden channels of a block's perceptron, in multiples of the width.
        dropout: dropout in training, from 0 up to but not including 1.
        tie_weights: use the token embedding as the output layer too.
        init_std: standard deviation of the initial weights. 0.02 is GPT-2's, for widths near 1,000; nets
            of width 64 leave their first plateau sooner with about 0.1.

    Raises:
        ValueError: for a size that cannot work; the message names it, its value and the remedy.
    """

    vocabulary: int
    context: int
    _: KW_ONLY
    width: int = 64
    layers: int = 2
    heads: int = 4
    expansion: int = 4
    dropout: float | int = 0.0
    tie_weights: bool = True
    init_std: float | int = 0.02

    def __post_init__(self) -> None:
        checks.whole(1, vocabulary=self.vocabulary, context=self.context, width=self.width)
        checks.whole(1, heads=self.heads, expansion=self.expansion)
        checks.whole(1, checks.MOST_LAYERS, layers=self.layers)
        checks.flag(tie_weights=self.tie_weights)
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}: "
                f"choose width {self.heads * math.ceil(self.width / self.heads)} or other heads"
            )
        checks.number(0, 1, dropout=self.dropout)
        checks.number(above=0, init_std=self.init_std)


class Block(nn.Module):
    """Attention, then a perceptron at each position; both see a normed input and add to it.

    No position is added here: whoever makes the tokens does that, because only they know where a token comes from.

    Args:
        width: channels, a multiple of `heads`.
        heads: number of heads.
        expansion: hidden channels of the perceptron, in multiples of the width.
        dropout: on the attention's weights and on both outputs, in training only.
        causal: a position sees itself and what came before; otherwise it sees all.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        expansion: int = 4,
        dropout: float | int = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout, causal=causal)
        self.norm_2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t c"], cache: KeyValueCache | None = None
    ) -> Float[Tensor, "b t c"]:
        """Returns the tokens after both parts; with a cache, `x` holds those that it has not seen."""
        x = x + self.attention(self.norm_1(x), cache)
        hidden = F.gelu(self.expand(self.norm_2(x)), approximate="tanh")
        return x + self.dropout(self.contract(hidden))


class CausalTransformer(nn.Module):
    """An autoregressive transformer over integer tokens.

    Args:
        config: the sizes.
        generator: source of the initial weights (on the CPU); the global one if it is left out.
    """

    Config = TransformerConfig

    def __init__(self, config: TransformerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                expansion=config.expansion,
                dropout=config.dropout,
                causal=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self._initialise(generator)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight

    def _initialise(self, generator: torch.Generator | None) -> None:
        """GPT-2's start: small normal weights, smaller where a branch joins the residual stream.

        Each of the 2·layers branches adds to the stream; dividing their last weights by the square
        root of that number keeps the stream's variance from growing with depth.
        """
        wide = self.config.init_std
        residual = wide / math.sqrt(2 * self.config.layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            else:
                joins = name.endswith(("project_out.weight", "contract.weight"))
                std = residual if joins else wide / 2 if name.startswith("position") else wide
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(
        self, tokens: Int64[Tensor, "b t"], caches: Sequence[KeyValueCache] | None = None
    ) -> Float[Tensor, "b t v"]:
        """Returns the logits of the token that *follows* each position.

        Args:
            tokens: integers in [0, vocabulary); with caches, only those not seen by them yet.
            caches: one for each block, from `new_caches`; they are extended in place.

        Raises:
            ValueError: if the sequence is empty, longer than the context, or holds a foreign token.
        """
        start = caches[0].length if caches else 0
        end = start + tokens.shape[1]
        self._check(tokens, end)
        positions = torch.arange(start, end, device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for index, block in enumerate(self.blocks):
            x = block(x, caches[index] if caches else None)
        return self.head(self.norm(x))

    def _check(self, tokens: Tensor, length: int) -> None:
        if tokens.numel() == 0:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}: give at least one sequence of one token "
                "(to start from nothing, reserve a start token)"
            )
        if length > self.config.context:
            raise ValueError(
                f"a sequence of {length} tokens is longer than the context {self.config.context}: "
                "cut it, or build the model with a larger context"
            )
        # On a GPU, reading the extremes would stall every step; its own kernel checks them.
        if tokens.device.type == "cpu":
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.config.vocabulary:
                raise ValueError(
                    f"tokens lie in [{low}, {high}], outside [0, {self.config.vocabulary - 1}]: "
                    "encode with the vocabulary that the model was built for"
                )

    def log_probs(self, tokens: Int64[Tensor, "b t"]) -> Float[Tensor, "b t-1"]:
        """Returns log P(x_t | x_1 … x_{t-1}) in nats for every token but the first, in float32.

        Raises:
            ValueError: if the sequences have fewer than two tokens.
        """
        if tokens.shape[1] < 2:
            raise ValueError(
                f"sequences of {tokens.shape[1]} token(s) have nothing to predict: give two or more"
            )
        logits = self(tokens[:, :-1]).float()
        return -F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")

    def loss(self, tokens: Int64[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Returns the mean negative log-likelihood of a token given the earlier ones, in nats."""
        return -self.log_probs(tokens).mean()

    def new_caches(self) -> list[KeyValueCache]:
        """Makes one empty cache for each block, as large as the context."""
        return [KeyValueCache(self.config.context) for _ in self.blocks]

    @torch.no_grad()
    def generate(
        self,
        prompt: Int64[Tensor, "b t"],
        n: int,
        generator: torch.Generator,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        use_cache: bool = True,
    ) -> Int64[Tensor, "b t+{n}"]:
        """Draws `n` more tokens, each from the model's distribution given all before it.

        Beyond the context the model sees the last `context` tokens only; every position then shifts
        at each step, so that part runs without the cache.

        Args:
            prompt: at least one token per sequence.
            n: how many tokens to add, 0 or more.
            generator: source of the draws; a CPU generator gives a GPU model the same draws.
            temperature: divides the logits; 1 samples from the model, 0 takes the likeliest token.
            top_k: sample among the `top_k` most probable tokens only.
            use_cache: keep keys and values of the past; changes the time and not the distribution.

        Returns:
            The prompt followed by the drawn tokens.

        Raises:
            ValueError: for a negative `n` or temperature, or `top_k` below 1.
        """
        if n < 0:
            raise ValueError(f"n is {n}: choose a number of tokens of at least 0")
        was_training = self.training
        self.eval()  # dropout while sampling would change the distribution
        try:
            caches = self.new_caches() if use_cache else None
            tokens = prompt
            for _ in range(n):
                if tokens.shape[1] > self.config.context:
                    caches = None
                unseen = tokens[:, caches[0].length :] if caches else tokens
                logits = self(unseen[:, -self.config.context :], caches)[:, -1]
                tokens = torch.cat([tokens, sample(logits, generator, temperature, top_k)], dim=1)
            return tokens
        finally:
            self.train(was_training)


def sample(
    logits: Float[Tensor, "b v"],
    generator: torch.Generator,
    temperature: float | int = 1.0,
    top_k: int | None = None,
) -> Int64[Tensor, "b 1"]:
    """Draws one token per row from softmax(logits / temperature), among the `top_k` largest if given.

    Raises:
        ValueError: for a negative temperature or `top_k` below 1.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}: choose 0 (most probable token) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: choose at least 1, or None for the whole vocabulary")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept.indices, kept.values)
    probs = logits.softmax(dim=-1).to(generator.device)
    return torch.multinomial(probs, 1, generator=generator).to(logits.device)
