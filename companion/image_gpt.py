"""Image GPT: a transformer that draws an image token by token, in the order of reading.

1. `ImageGPT` is the model of a grid of tokens: P(s) = Π_t P(s_t | s_1 … s_{t−1}), every factor a softmax over the
   vocabulary. The tokens may be pixels, blocks of pixels, or the codes of a VQ-VAE.
2. `PixelGPT` is the model of images whose tokens are small blocks of pixels; its likelihood is that of the pixels.
3. `TwoStage` puts a prior over codes and the decoder that they belong to together.

References:
    Chen et al., Generative Pretraining from Pixels, 2020 (Image GPT).
    Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2): the block.
    van den Oord et al., Neural Discrete Representation Learning, 2017, section 3.3: a prior over codes.
    Ramesh et al., Zero-Shot Text-to-Image Generation, 2021: one embedding for the row and one for the column.

Deviations from Image GPT, and why. The token that is asked for sees, beside the token before it, the three above it in
its very input (`neighbours`): attention learns to look there by itself, but that takes most of a short training. Pixels
come in blocks of 2×2, one softmax over all that a block can be: the factorisation stays exact, and the sequence is a
quarter as long. Colours are quantised evenly instead of by clustering.

Shapes: `n` images, a grid of `r` rows and `k` columns, `t = r·k` tokens, `v` tokens in the vocabulary.
"""

import math
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.distributions import binarise
from companion.nn.decoding import check_choices, continue_sequence
from companion.nn.transformer import Trunk, check_tokens, evaluating, initialise
from companion.randomness import Source, integers, source_of, uniform

# A softmax over more is no longer sensible for a token of an image.
LARGEST_VOCABULARY = 65_536


# --- 1. A transformer over a grid of tokens ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TransformerSizes:
    """What transformers over image tokens have in common.

    Attributes:
        width: channels of the residual stream, a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads in each block.
        expansion: hidden channels of a block's perceptron, in multiples of the width.
        dropout: dropout in training, from 0 up to but not including 1.
        init_std: standard deviation of the initial weights.
        neighbours: show each position the three tokens above it, beside the one before it.

    Raises:
        ValueError: for a size that cannot work; the message names it, its value and the remedy.
    """

    _: KW_ONLY
    width: int = 128
    layers: int = 4
    heads: int = 4
    expansion: int = 4
    dropout: float | int = 0.0
    init_std: float | int = 0.05
    neighbours: bool = True

    def __post_init__(self) -> None:
        checks.whole(1, width=self.width, heads=self.heads, expansion=self.expansion)
        checks.whole(1, checks.MOST_LAYERS, layers=self.layers)
        checks.number(0, 1, dropout=self.dropout)
        checks.number(above=0, init_std=self.init_std)
        checks.flag(neighbours=self.neighbours)
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}: "
                f"choose width {self.heads * math.ceil(self.width / self.heads)} or other heads."
            )


@dataclass(frozen=True)
class ImageGPTConfig(TransformerSizes):
    """The settings of an `ImageGPT`.

    Attributes:
        vocabulary: number of tokens; tokens are the integers from 0 to `vocabulary` − 1.
        rows: of the grid.
        columns: of the grid.
        classes: number of labels the model is conditional on; 0 for none.
    """

    _: KW_ONLY
    vocabulary: int = 512
    rows: int = 7
    columns: int = 7
    classes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(0, classes=self.classes)
        checks.whole(1, LARGEST_VOCABULARY, vocabulary=self.vocabulary)
        checks.whole(1, rows=self.rows, columns=self.columns)


class TokenGrid(nn.Module):
    """What models of a grid of tokens have in common: what each position is told, and how a grid is filled.

    A subclass adds `trunk`, a causal transformer, and `head`, from its features to logits.

    Args:
        vocabulary, rows, columns, width, neighbours: as in `ImageGPTConfig`.
    """

    trunk: Trunk
    head: nn.Linear

    def __init__(
        self, vocabulary: int, rows: int, columns: int, width: int, *, neighbours: bool
    ) -> None:
        super().__init__()
        self.outside, self.shape = vocabulary, (rows, columns)
        # What a position is told: the token before it and, above it, those to the left, in the middle, to the right.
        # The row after the last stands for "outside the grid".
        self.previous = nn.Embedding(vocabulary + 1, width)
        self.above = nn.ModuleList(
            nn.Embedding(vocabulary + 1, width) for _ in range(3 if neighbours else 0)
        )
        self.position_row = nn.Embedding(rows, width)
        self.position_column = nn.Embedding(columns, width)

    @property
    def rows(self) -> int:
        """Rows of the grid."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Columns of the grid."""
        return self.shape[1]

    @property
    def length(self) -> int:
        """The number of tokens of an image."""
        return self.rows * self.columns

    def check_grid(self, tokens: Int64[Tensor, "..."]) -> None:
        """Requires grids of this model's tokens.

        Raises:
            ValueError: for another grid or a foreign token.
        """
        if tokens.ndim != 3 or tokens.shape[1:] != (self.rows, self.columns):
            raise ValueError(
                f"this {type(self).__name__} takes grids of {self.rows}×{self.columns} tokens, got the shape "
                f"{tuple(tokens.shape)}."
            )
        check_tokens(tokens, self.outside)

    def check_prefix(self, prefix: Int64[Tensor, "..."], n: int) -> None:
        """Requires the first tokens of each of n images.

        Raises:
            ValueError: if they are more than an image has, or of another number of images, or foreign.
        """
        if prefix.ndim != 2 or len(prefix) != n or prefix.shape[1] > self.length:
            raise ValueError(
                f"a prefix has a row for each of the {n} images and at most {self.length} tokens (the grid is "
                f"{self.rows}×{self.columns}), got the shape {tuple(prefix.shape)}."
            )
        check_tokens(prefix, self.outside, "the tokens of the prefix")

    def places(self) -> Float[Tensor, "1 t c"]:
        """Returns the embedding of every place, that of its row plus that of its column."""
        rows, columns = self.position_row.weight, self.position_column.weight
        return (rows[:, None] + columns[None]).flatten(0, 1)[None]

    def inputs(self, tokens: Int64[Tensor, "n r k"]) -> Float[Tensor, "n t c"]:
        """Returns what each position is told before its own token is known."""
        flat = rearrange(tokens, "n r k -> n (r k)")
        x = self.previous(F.pad(flat[:, :-1], (1, 0), value=self.outside))
        # Row −1 and columns −1 and `columns` lie outside.
        framed = F.pad(tokens[:, :-1], (1, 1, 1, 0), value=self.outside)
        for shift, table in enumerate(self.above):
            x = x + table(rearrange(framed[:, :, shift : shift + self.columns], "n r k -> n (r k)"))
        return x + self.places()

    def input_at(
        self, place: int, flat: Int64[Tensor, "n t"], places: Float[Tensor, "1 t c"]
    ) -> Float[Tensor, "n c"]:
        """Returns what position `place`, not the first, is told: one column of `inputs`."""
        row, column = divmod(place, self.columns)
        before = flat[:, place - 1]
        x = self.previous(before) + places[:, place]
        for shift, table in enumerate(self.above, start=-1):
            inside = row > 0 and 0 <= column + shift < self.columns
            above = flat[:, place - self.columns + shift] if inside else None
            x = x + table(torch.full_like(before, self.outside) if above is None else above)
        return x

    def fill(
        self,
        prefix: Int64[Tensor, "n p"],
        u: Float[Tensor, "n t"],
        *,
        context: Float[Tensor, "n s c"] | None = None,
        added: Float[Tensor, "n #t c"] | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        use_cache: bool = True,
    ) -> Int64[Tensor, "n r k"]:
        """Draws the tokens that follow a prefix, one after the other.

        Args:
            prefix: the first tokens of each image; they stay.
            u: uniform numbers in [0, 1), one for each token of an image: a longer prefix does not move later draws.
            context: inputs that precede those of the image, such as a caption's.
            added: to the inputs of all positions, such as a label's embedding, or one row for each.
            temperature, top_k, top_p: as for `companion.nn.decoding.restrict`.
            use_cache: keep keys and values of the past; changes the time and not the tokens.
        """
        # Many small steps: without autograd's book-keeping of views they take a tenth less.
        with evaluating(self), torch.inference_mode():
            canvas = _Canvas(self, prefix, context, added, use_cache)
            known = canvas.known
            if known < self.length:
                continue_sequence(
                    canvas.logits(),
                    canvas.advance,
                    u[:, known:],
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    out=canvas.flat[:, known:],
                )
        # A tensor that autograd may use.
        return canvas.tokens().clone()


class _Canvas:
    """Grids that are being filled, and what the transformer has seen of them."""

    def __init__(
        self,
        grid: TokenGrid,
        prefix: Tensor,
        context: Tensor | None,
        added: Tensor | None,
        use_cache: bool,
    ) -> None:
        self.grid, self.context, self.known = grid, context, prefix.shape[1]
        self.added = None if added is None else added.expand(-1, grid.length, -1)
        # Tokens that are not known yet are zeros; only positions after them would see them.
        self.flat = F.pad(prefix, (0, grid.length - self.known))
        self.places = grid.places()
        before = 0 if context is None else context.shape[1]
        self.caches = grid.trunk.new_caches(before + grid.length) if use_cache else None

    def tokens(self) -> Int64[Tensor, "n r k"]:
        return rearrange(self.flat, "n (r k) -> n r k", r=self.grid.rows)

    def logits(self) -> Float[Tensor, "n v"]:
        """Returns the logits of the first token that is not known, from one pass over all that are."""
        x = self.grid.inputs(self.tokens())[:, : self.known + 1]
        x = x if self.added is None else x + self.added[:, : self.known + 1]
        x = x if self.context is None else torch.cat([self.context, x], dim=1)
        return self.grid.head(self.grid.trunk(x, self.caches)[:, -1])

    def advance(self, token: Int64[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Goes on after the token that was drawn last, which the grid holds, and returns the logits of the next."""
        self.known += 1
        if self.caches is None:
            return self.logits()
        x = self.grid.input_at(self.known, self.flat, self.places)[:, None]
        x = x if self.added is None else x + self.added[:, self.known, None]
        return self.grid.head(self.grid.trunk(x, self.caches)[:, -1])


class ImageGPT(TokenGrid):
    """An autoregressive transformer over a grid of tokens, in the order of reading.

    Args:
        config: the settings.
    """

    Config = ImageGPTConfig

    def __init__(self, config: ImageGPTConfig | None = None) -> None:
        c = config or ImageGPTConfig()
        super().__init__(c.vocabulary, c.rows, c.columns, c.width, neighbours=c.neighbours)
        self.config = c
        self.label = nn.Embedding(c.classes, c.width) if c.classes else None
        self.dropout = nn.Dropout(c.dropout)
        self.trunk = Trunk(c.width, c.layers, c.heads, expansion=c.expansion, dropout=c.dropout)
        self.head = nn.Linear(c.width, c.vocabulary)
        initialise(self, c.init_std, c.layers)

    def _label(self, labels: Tensor | None, n: int) -> Tensor | None:
        c = self.config
        if (labels is None) != (self.label is None):
            raise ValueError(
                f"this ImageGPT has {c.classes} classes: give each image's label."
                if c.classes
                else "this ImageGPT was built without classes: leave the labels out."
            )
        if labels is None or self.label is None:
            return None
        if labels.shape != (n,):
            raise ValueError(f"{n} images need {n} labels, got the shape {tuple(labels.shape)}.")
        check_tokens(labels, c.classes, "labels")
        return self.label(labels.to(self.label.weight.device))[:, None]

    # -- The distribution -----------------------------------------------------------------------------------------

    def forward(
        self, tokens: Int64[Tensor, "n r k"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n t v"]:
        """Returns the logits of every token given those before it, in the order of reading.

        Args:
            tokens: integers in [0, vocabulary).
            labels: one per image, for a conditional model.

        Raises:
            ValueError: for another grid, a foreign token, or labels that are missing or too many.
        """
        self.check_grid(tokens)
        x, label = self.inputs(tokens), self._label(labels, len(tokens))
        return self.head(self.trunk(self.dropout(x if label is None else x + label)))

    def log_probs(
        self, tokens: Int64[Tensor, "n r k"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n t"]:
        """Returns log P(s_t | s_1 … s_{t−1}) of every token, in nats, in float32."""
        logits = rearrange(self(tokens, labels).float(), "n t v -> n v t")
        return -F.cross_entropy(logits, rearrange(tokens, "n r k -> n (r k)"), reduction="none")

    def nll(
        self, tokens: Int64[Tensor, "n r k"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Returns −log P of each image's tokens, in nats."""
        return -self.log_probs(tokens, labels).sum(dim=1)

    # -- Drawing --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Int64[Tensor, " n"] | None = None,
        prefix: Int64[Tensor, "n p"] | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        use_cache: bool = True,
    ) -> Int64[Tensor, "n r k"]:
        """Draws grids of tokens, one token after the other.

        Args:
            n: how many.
            source: of the draws.
            seed: in place of a source; image i is then a function of the seed and of i alone.
            labels: one per image, for a conditional model.
            prefix: the first tokens of each image, in the order of reading; they stay.
            temperature, top_k, top_p: as for `companion.nn.decoding.restrict`.
            use_cache: keep keys and values of the past; changes the time and not the tokens.

        Raises:
            ValueError: for a negative temperature, `top_k` below 1, `top_p` outside (0, 1], a prefix that is longer
                than an image or holds foreign tokens, or labels that are missing or too many.
        """
        device = self.head.weight.device
        check_choices(temperature, top_k, top_p)
        checks.whole(1, n=n)
        if prefix is None:
            prefix = torch.empty(n, 0, dtype=torch.int64)
        self.check_prefix(prefix, n)
        return self.fill(
            prefix.to(device),
            uniform((n, self.length), source_of(n, source, seed), device),
            added=self._label(labels, n),
            use_cache=use_cache,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )


# --- 2. Pixels as tokens ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelGPTConfig(TransformerSizes):
    """The settings of a `PixelGPT`.

    Attributes:
        channels: of the images.
        size: their side in pixels, a multiple of `patch`.
        patch: side of the block of pixels that is one token.
        levels: values that a pixel can have; 2 for black and white images, which are drawn anew from the grey ones
            whenever they are scored (dynamic binarisation).
        classes: number of labels the model is conditional on; 0 for none.

    Raises:
        ValueError: for a setting that cannot work, such as blocks that can be more than 65,536 things.
    """

    _: KW_ONLY
    channels: int = 1
    size: int = 28
    patch: int = 2
    levels: int = 2
    classes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(0, classes=self.classes)
        checks.whole(1, channels=self.channels, size=self.size, patch=self.patch)
        checks.whole(2, 256, levels=self.levels)
        if self.size % self.patch:
            raise ValueError(
                f"size must be a multiple of patch {self.patch}, got {self.size}; choose another patch, or resize the "
                "images."
            )
        if self.levels ** min(self.channels * self.patch**2, 64) > LARGEST_VOCABULARY:
            raise ValueError(
                f"a block of {self.patch}×{self.patch} pixels with {self.channels} channel(s) of {self.levels} levels "
                f"can be more than {LARGEST_VOCABULARY:,} things; choose fewer levels or a smaller patch."
            )


class PixelGPT(nn.Module):
    """A transformer over square images, a block of pixels a token; its likelihood is that of the pixels' levels.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "image-gpt".
    """

    Config = PixelGPTConfig

    def __init__(self, config: PixelGPTConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or PixelGPTConfig()
        side = c.size // c.patch
        shared = {f.name: getattr(c, f.name) for f in fields(TransformerSizes)}
        self.gpt = ImageGPT(
            ImageGPTConfig(
                vocabulary=self.vocabulary, rows=side, columns=side, classes=c.classes, **shared
            )
        )

    # -- Pixels and tokens ----------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> int:
        """What a block can be: levels ^ (numbers per block)."""
        c = self.config
        return int(c.levels ** (c.channels * c.patch**2))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.gpt.config.rows, self.gpt.config.columns)

    def observe(self, x: Float[Tensor, "n c h w"], source: Source) -> Float[Tensor, "n c h w"]:
        """Turns grey values into those that are modelled: random black or white, or the nearest level."""
        if self.config.levels == 2:
            return binarise(x, source)
        top = self.config.levels - 1
        return ((x + 1) * (top / 2)).round().clamp(0, top) * (2 / top) - 1

    def tokenize(self, x: Float[Tensor, "n c h w"]) -> Int64[Tensor, "n r k"]:
        """Returns the token of each block; values between two levels count as the nearer.

        Raises:
            TypeError, ValueError: if the images are bytes, or of another shape.
        """
        c = self.config
        checks.images(x, c.channels, c.size, "PixelGPT")
        top = c.levels - 1
        digits = ((x + 1) * (top / 2)).round().clamp(0, top).long()
        blocks = rearrange(digits, "n c (r p) (k q) -> n r k (c p q)", p=c.patch, q=c.patch)
        return (blocks * self._powers(x.device)).sum(dim=-1)

    def detokenize(self, tokens: Int64[Tensor, "n r k"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of tokens, in [−1, 1]; the inverse of `tokenize`.

        Raises:
            ValueError: for another grid or a foreign token.
        """
        c = self.config
        self.gpt.check_grid(tokens)
        digits = tokens[..., None] // self._powers(tokens.device) % c.levels
        blocks = rearrange(
            digits, "n r k (c p q) -> n c (r p) (k q)", c=c.channels, p=c.patch, q=c.patch
        )
        return blocks.float() * (2 / (c.levels - 1)) - 1

    def _powers(self, device: torch.device) -> Int64[Tensor, " d"]:
        """The number of a block is written in base `levels`, its first pixel the last digit."""
        c = self.config
        places = torch.arange(c.channels * c.patch**2, device=device)
        return torch.full_like(places, c.levels) ** places

    # -- The distribution -----------------------------------------------------------------------------------------

    def nll(
        self,
        x: Float[Tensor, "n c h w"],
        source: Source,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Returns −log P of each image's levels, in nats.

        Args:
            x: images in [−1, 1].
            source: of the pixels' noise, for black and white images.
            labels: one per image, for a conditional model.
        """
        checks.images(x, self.config.channels, self.config.size, "PixelGPT")
        return self.gpt.nll(self.tokenize(self.observe(x, source)), labels)

    def loss(
        self,
        x: Float[Tensor, "n c h w"],
        source: Source,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> dict[str, Tensor]:
        """Returns "loss", the mean over the batch in nats per number, and "nats" per image."""
        nats = self.nll(x, source, labels).mean()
        # Of the order of one, whatever the size: so the same learning rates and clips suit all.
        return {"loss": nats / x[0].numel(), "nats": nats.detach()}

    # -- Drawing --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Int64[Tensor, " n"] | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        use_cache: bool = True,
    ) -> Float[Tensor, "n c h w"]:
        """Draws images, in [−1, 1]; arguments as for `ImageGPT.generate`.

        A conditional model draws the labels too, all classes alike, where none are given.
        """
        source = source_of(n, source, seed)
        if labels is None and self.config.classes:
            labels = integers(self.config.classes, (n,), source)
        tokens = self.gpt.generate(
            n,
            source,
            labels=labels,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            use_cache=use_cache,
        )
        return self.detokenize(tokens)

    @torch.no_grad()
    def complete(
        self,
        x: Float[Tensor, "n c h w"],
        rows: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Int64[Tensor, " n"] | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Keeps the upper pixels of images and draws the rest.

        Args:
            x: images in [−1, 1], of which pixels are taken at their nearest level.
            rows: of pixels that are kept, from the top, a multiple of `patch`.
            source, seed, labels, temperature, top_k, top_p: as for `ImageGPT.generate`.

        Raises:
            ValueError: if so many rows cannot be kept.
        """
        c = self.config
        checks.whole(0, c.size, rows=rows)
        if rows % c.patch:
            raise ValueError(
                f"rows must be a multiple of patch {c.patch}, got {rows}: a token is a block of {c.patch} rows."
            )
        known = rearrange(self.tokenize(x)[:, : rows // c.patch], "n r k -> n (r k)")
        tokens = self.gpt.generate(
            len(x),
            source_of(len(x), source, seed),
            labels=labels,
            prefix=known,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        return self.detokenize(tokens)


# --- 3. Codes as tokens -----------------------------------------------------------------------------------------------


@runtime_checkable
class ImageTokenizer(Protocol):
    """What turns images into a grid of whole numbers and back, such as a VQ-VAE."""

    @property
    def vocabulary(self) -> int:
        """The number of codes."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""

    def tokenize(self, x: Tensor, /) -> Tensor:
        """Returns the codes "n r k" of images in [−1, 1]."""

    def detokenize(self, tokens: Tensor, /) -> Tensor:
        """Returns the images of codes, in [−1, 1]."""


@torch.no_grad()
def codes_of(tokenizer: ImageTokenizer, x: Float[Tensor, "n c h w"]) -> Int64[Tensor, "n r k"]:
    """Returns the codes of images in [−1, 1], computed in float32 also where others train in bfloat16.

    A place near the border of two codes would have one in training and the other afterwards.
    """
    with torch.autocast(x.device.type, enabled=False):
        return tokenizer.tokenize(x.float())


def require_tokenizer(model: TokenGrid, tokenizer: nn.Module) -> None:
    """Requires a tokenizer whose codes a transformer models.

    Raises:
        TypeError: if it is none.
        ValueError: if its codes are others in number, or lie on another grid.
    """
    if not isinstance(tokenizer, ImageTokenizer):
        raise TypeError(f"a {type(tokenizer).__name__} does not turn images into codes.")
    codes, (rows, columns) = tokenizer.vocabulary, tokenizer.grid
    if (codes, rows, columns) != (model.outside, model.rows, model.columns):
        raise ValueError(
            f"this {type(model).__name__} is for {model.outside} codes in a grid of {model.rows}×{model.columns}, but "
            f"the tokenizer has {codes} in {rows}×{columns}; give it the tokenizer that it was trained with."
        )


class TwoStage(nn.Module):
    """A prior over codes, and the tokenizer that they belong to: together a model of images.

    Args:
        prior: the transformer over codes.
        tokenizer: encoder and decoder; nothing here trains it.

    Raises:
        TypeError, ValueError: as from `require_tokenizer`.
    """

    def __init__(self, prior: ImageGPT, tokenizer: nn.Module) -> None:
        super().__init__()
        require_tokenizer(prior, tokenizer)
        self.prior = prior
        # A module and a tokenizer in one, which no type can say.
        self.tokenizer: Any = tokenizer

    def nll(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Returns −log P of the codes of each image, in nats: what it costs to send them."""
        return self.prior.nll(self.codes(x), labels)

    def codes(self, x: Float[Tensor, "n c h w"]) -> Int64[Tensor, "n r k"]:
        """Returns the codes of images in [−1, 1]."""
        return codes_of(self.tokenizer, x)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Int64[Tensor, " n"] | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Draws codes and decodes them; arguments as for `ImageGPT.generate`.

        A conditional prior draws the labels too, all classes alike, where none are given.
        """
        source = source_of(n, source, seed)
        if labels is None and self.prior.config.classes:
            labels = integers(self.prior.config.classes, (n,), source)
        tokens = self.prior.generate(
            n, source, labels=labels, temperature=temperature, top_k=top_k, top_p=top_p
        )
        return self.tokenizer.detokenize(tokens)
