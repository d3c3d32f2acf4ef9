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

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from companion import checks
from companion.nn.attention import KeyValueCache, SelfAttention
from companion.nn.decoding import continue_sequence
from companion.randomness import Source, source_of, uniform


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
        mask: which position may see which, as for `SelfAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        expansion: int = 4,
        dropout: float | int = 0.0,
        causal: bool = False,
        mask: Bool[Tensor, "p p"] | None = None,
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout, causal=causal, mask=mask)
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


class Trunk(nn.Module):
    """Blocks and a last norm: what lies between a transformer's embedding and its head.

    Args:
        width, layers, heads, expansion, dropout: as in `TransformerConfig`.
        causal: each position sees itself and what came before; otherwise all.
        masks: for sparse attention, one for each block, or None where a block sees all that it may.

    Raises:
        ValueError: if there are not as many masks as blocks.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        expansion: int = 4,
        dropout: float | int = 0.0,
        causal: bool = True,
        masks: Sequence[Bool[Tensor, "p p"] | None] | None = None,
    ) -> None:
        super().__init__()
        if masks is not None and len(masks) != layers:
            raise ValueError(f"{layers} layers need as many masks, got {len(masks)}.")
        self.blocks = nn.ModuleList(
            Block(width, heads, expansion=expansion, dropout=dropout, causal=causal, mask=mask)
            for mask in (masks or [None] * layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "b t c"], caches: Sequence[KeyValueCache] | None = None
    ) -> Float[Tensor, "b t c"]:
        """Returns the tokens after all blocks and the last norm; with caches, `x` holds those not seen yet."""
        for index, block in enumerate(self.blocks):
            x = block(x, caches[index] if caches else None)
        return self.norm(x)

    def new_caches(self, capacity: int) -> list[KeyValueCache]:
        """Makes an empty cache of so many positions for each block."""
        return [KeyValueCache(capacity) for _ in self.blocks]


def initialise(
    module: nn.Module, std: float, layers: int, generator: torch.Generator | None = None
) -> None:
    """GPT-2's start: small normal weights, smaller where a branch joins the residual stream.

    Each of the 2·layers branches adds to the stream; dividing their last weights by the square root of that number
    keeps the stream's variance from growing with depth. Positions get half of the others' standard deviation.

    Args:
        module: a transformer, with its embeddings and its head.
        std: standard deviation of all other weights.
        layers: number of blocks.
        generator: source of the weights (on the CPU); the global one if it is left out.
    """
    residual = std / math.sqrt(2 * layers)
    for name, parameter in module.named_parameters():
        last = name.rpartition(".")[0].rpartition(".")[2]
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" in last:
            nn.init.ones_(parameter)
        else:
            joins = last in ("project_out", "contract")
            scale = residual if joins else std / 2 if last.startswith("position") else std
            nn.init.normal_(parameter, std=scale, generator=generator)


class CausalTransformer(nn.Module):
    """An autoregressive transformer over integer tokens.

    Args:
        config: the sizes.
        generator: source of the initial weights (on the CPU); the global one if it is left out.
    """

    Config = TransformerConfig

    def __init__(self, config: TransformerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = c = config
        self.token_embedding = nn.Embedding(c.vocabulary, c.width)
        self.position_embedding = nn.Embedding(c.context, c.width)
        self.dropout = nn.Dropout(c.dropout)
        self.trunk = Trunk(c.width, c.layers, c.heads, expansion=c.expansion, dropout=c.dropout)
        self.head = nn.Linear(c.width, c.vocabulary, bias=False)
        initialise(self, c.init_std, c.layers, generator)
        if c.tie_weights:
            self.head.weight = self.token_embedding.weight

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, for looking inside."""
        return self.trunk.blocks

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
        self._check(tokens, start + tokens.shape[1])
        return self.head(self._features(tokens, start, caches))

    def _features(
        self, tokens: Tensor, start: int, caches: Sequence[KeyValueCache] | None
    ) -> Tensor:
        positions = self.position_embedding.weight[start : start + tokens.shape[1]]
        return self.trunk(self.dropout(self.token_embedding(tokens) + positions), caches)

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
        check_tokens(tokens, self.config.vocabulary)

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
        return self.trunk.new_caches(self.config.context)

    @torch.no_grad()
    def generate(
        self,
        prompt: Int64[Tensor, "b t"],
        n: int,
        source: Source | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        *,
        seed: int | None = None,
        use_cache: bool = True,
    ) -> Int64[Tensor, "b t+{n}"]:
        """Draws `n` more tokens, each from the model's distribution given all before it.

        Beyond the context the model sees the last `context` tokens only; every position then shifts
        at each step, so that part runs without the cache.

        Args:
            prompt: at least one token per sequence.
            n: how many tokens to add, 0 or more.
            source: of the draws; a CPU generator gives a GPU model the same draws.
            temperature: divides the logits; 1 samples from the model, 0 takes the likeliest token.
            top_k: sample among the `top_k` most probable tokens only.
            top_p: of those, among the fewest likeliest ones that have this probability together.
            seed: in place of a source; sequence i is then a function of the seed and of i alone.
            use_cache: keep keys and values of the past; changes the time and not the tokens.

        Returns:
            The prompt followed by the drawn tokens.

        Raises:
            ValueError: for a negative `n` or temperature, `top_k` below 1, or `top_p` outside (0, 1].
        """
        if n < 0:
            raise ValueError(f"n is {n}: choose a number of tokens of at least 0")
        context = self.config.context
        self._check(prompt[:, -context:], min(prompt.shape[1], context))
        u = uniform((len(prompt), n), source_of(len(prompt), source, seed))
        with evaluating(self):
            tokens, caches = prompt, self.new_caches() if use_cache else None

            def look() -> Tensor:
                seen = caches[0].length if caches else 0
                unseen = tokens[:, seen:][:, -context:]
                return self.head(self._features(unseen, seen, caches)[:, -1])

            def advance(token: Tensor) -> Tensor:
                nonlocal tokens, caches
                tokens = torch.cat([tokens, token[:, None]], dim=1)
                if tokens.shape[1] > context:
                    caches = None
                return look()

            if tokens.shape[1] > context:
                caches = None
            drawn = continue_sequence(
                look(), advance, u, temperature=temperature, top_k=top_k, top_p=top_p
            )
        return torch.cat([prompt, drawn], dim=1)


def check_tokens(tokens: Int64[Tensor, "..."], vocabulary: int, name: str = "tokens") -> None:
    """Requires integers in [0, vocabulary).

    On a GPU nothing is read, since that would stall every step; its own kernel refuses foreign tokens.

    Raises:
        ValueError: for a token that the vocabulary does not have.
    """
    if tokens.device.type == "cpu" and tokens.numel():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"{name} lie in [{low}, {high}], outside [0, {vocabulary - 1}]: "
                "encode with the vocabulary that the model was built for"
            )


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switches a network to evaluation inside, since dropout while sampling would change the distribution."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
