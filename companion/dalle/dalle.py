"""DALL-E's transformer: one sequence of text tokens and image tokens, modelled jointly.

P(text, image) = Π_t P(t_j | t_1 … t_{j−1}) · Π_i P(s_i | text, s_1 … s_{i−1}). Images are drawn by drawing the s_i
after a given text; a discrete VAE turns them into pixels, and CLIP chooses among several draws.

1. `attention_mask`: row, column and convolutional attention.
2. `DALLE`: the transformer.
3. `TextToImage`: the transformer with its tokenizer of images and with CLIP.

References:
    Ramesh et al., Zero-Shot Text-to-Image Generation, 2021 (DALL-E), section 2.2 and appendix B.
    Child et al., Generating Long Sequences with Sparse Transformers, 2019: sparse attention.

As in the paper: the text comes first; every padded position of the text has a token of its own; the loss weighs text
and image 1 : 7; image positions are rows plus columns; the pattern of masks is row, column, row, row, with a
convolutional last layer. Deviations, and why: full attention is the default, since 64 image tokens need no sparsity;
texts and images have a softmax each instead of one over both vocabularies, which the other's tokens would only waste;
an image position is told the three tokens above it (`neighbours`, see `companion.image_gpt`).

Shapes: `n` pairs, `l` text positions, a grid of `r` rows and `k` columns, `t = r·k` image tokens, `v` image codes.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.image_gpt import (
    LARGEST_VOCABULARY,
    TokenGrid,
    TransformerSizes,
    codes_of,
    require_tokenizer,
)
from companion.nn.decoding import check_choices, continue_sequence
from companion.nn.tokenizer import BytePairTokenizer
from companion.nn.transformer import Trunk, evaluating, initialise
from companion.randomness import Source, source_of, uniform

Kind = Literal["full", "row", "column", "convolution"]

TEXT_WEIGHT, IMAGE_WEIGHT = 1, 7
# Images drawn at a time, however many there are to choose from: keys and values of each take memory.
AT_ONCE = 256
MOST_DRAWS = 10_000


# --- 1. Masks ---------------------------------------------------------------------------------------------------------


def attention_mask(
    kind: Kind, text_length: int, rows: int, columns: int, kernel: int = 11
) -> Bool[Tensor, "p p"]:
    """Says which position may see which, in a sequence of a text and then an image (Ramesh et al., Fig. 11).

    Every position sees all text before it. Of the image before it, an image position sees with
    - "full": all;
    - "row": the last `columns` positions in the order of reading, as far as the one right above it;
    - "column": those right above it, in all rows;
    - "convolution": those in a window of `kernel` × `kernel` around it, which wraps around the sides.

    Args:
        kind: of the mask.
        text_length: positions of the text.
        rows: of the image's grid.
        columns: of the image's grid.
        kernel: side of the convolution's window, odd.

    Returns:
        True where position (row of the mask) may see position (column).
    """
    checks.one_of(("full", "row", "column", "convolution"), kind=kind)
    length = rows * columns
    # On the CPU also where a network is only sketched, on the device "meta": a mask has to be looked at.
    i = torch.arange(length, device="cpu")
    back = i[:, None] - i[None]  # how many positions before
    if kind == "row":
        seen = back <= columns
    elif kind == "column":
        seen = back % columns == 0
    elif kind == "convolution":
        half = kernel // 2
        # The nearest multiple of a row's length: how many rows up; what is left: how far to the side.
        up = (back + half).div(columns, rounding_mode="floor")
        side = back - up * columns
        seen = (up <= half) & (side.abs() <= half)
        if (
            2 * half + 1 > columns
        ):  # the window is wider than a row: every place within so many rows
            seen = back <= half * (columns + 1)
    else:
        seen = torch.ones(length, length, dtype=torch.bool, device="cpu")
    size = text_length + length
    whole = torch.ones(size, size, dtype=torch.bool, device="cpu")
    whole[text_length:, text_length:] = seen
    return whole.tril()


def layer_kinds(layers: int, attention: Literal["full", "sparse"]) -> list[Kind]:
    """Returns the kind of attention of each layer (Ramesh et al., appendix B.1).

    Sparse attention is row, column, row, row, and again, with a convolution in the last layer.
    """
    if attention == "full":
        return ["full"] * layers
    kinds: list[Kind] = ["column" if layer % 4 == 1 else "row" for layer in range(layers)]
    kinds[-1] = "convolution"
    return kinds


# --- 2. The transformer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DALLEConfig(TransformerSizes):
    """The settings of a `DALLE`.

    Attributes:
        codes: number of image tokens.
        rows: of the image's grid.
        columns: of the image's grid.
        text_length: positions of the text; longer captions are refused, shorter ones padded.
        merges: of the text's tokenizer, as `BytePairTokenizer` takes them.
        known_words: that the training captions held.
        attention: "full", or the paper's "sparse" pattern of rows, columns and a convolution.
        kernel: side of the convolution's window, odd.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    _: KW_ONLY
    codes: int = 512
    rows: int = 8
    columns: int = 8
    text_length: int = 16
    merges: tuple[int, ...] = ()
    known_words: tuple[str, ...] = ()
    attention: Literal["full", "sparse"] = "full"
    kernel: int = 11

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(1, LARGEST_VOCABULARY, codes=self.codes)
        checks.whole(1, rows=self.rows, columns=self.columns, text_length=self.text_length)
        checks.whole(1, kernel=self.kernel)
        checks.one_of(("full", "sparse"), attention=self.attention)
        checks.tuple_of(int, merges=self.merges)
        checks.tuple_of(str, known_words=self.known_words)
        BytePairTokenizer(self.merges)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that it has a middle, got {self.kernel}.")


class Nats(NamedTuple):
    """−log P of each pair's parts, in nats.

    Attributes:
        text: of all text positions, the padded ones included.
        image: of all image tokens, given the text.
    """

    text: Float[Tensor, " n"]
    image: Float[Tensor, " n"]


class DALLE(TokenGrid):
    """An autoregressive transformer over a caption and then an image.

    Args:
        config: the settings.
    """

    Config = DALLEConfig

    def __init__(self, config: DALLEConfig | None = None) -> None:
        c = config or DALLEConfig()
        super().__init__(c.codes, c.rows, c.columns, c.width, neighbours=c.neighbours)
        self.config = c
        # Text tokens, then one pad for each position, then the start.
        self.start = self.text_vocabulary
        self.text = nn.Embedding(self.text_vocabulary + 1, c.width)
        self.position_text = nn.Embedding(c.text_length, c.width)
        self.dropout = nn.Dropout(c.dropout)
        masks = [
            None
            if kind == "full"
            else attention_mask(kind, c.text_length, c.rows, c.columns, c.kernel)
            for kind in layer_kinds(c.layers, c.attention)
        ]
        self.trunk = Trunk(
            c.width, c.layers, c.heads, expansion=c.expansion, dropout=c.dropout, masks=masks
        )
        self.head = nn.Linear(c.width, c.codes)
        self.text_head = nn.Linear(c.width, self.text_vocabulary)
        initialise(self, c.init_std, c.layers)

    # -- Captions -------------------------------------------------------------------------------------------------

    @cached_property
    def captions(self) -> BytePairTokenizer:
        """The tokenizer of captions."""
        return BytePairTokenizer(self.config.merges, self.config.known_words)

    @property
    def text_vocabulary(self) -> int:
        """What a text position can be: a token of the tokenizer, or the pad of that position."""
        return self.captions.vocabulary + self.config.text_length

    def encode(self, captions: Sequence[str]) -> Int64[Tensor, "n l"]:
        """Returns the tokens of captions, padded: the pad of position j is `vocabulary + j`.

        Raises:
            ValueError: if a caption is empty or too long.
        """
        tokenizer, length = self.captions, self.config.text_length
        pads = list(range(tokenizer.vocabulary, tokenizer.vocabulary + length))
        rows = []
        for caption in captions:
            if not caption.strip():
                raise ValueError("the prompt is empty; describe what to draw.")
            tokens = tokenizer.encode(caption)
            if len(tokens) > length:
                raise ValueError(
                    f"the prompt {caption[:60]!r} has {len(tokens)} tokens, but this model reads at most {length}; "
                    "shorten it."
                )
            rows.append(tokens + pads[len(tokens) :])
        if not rows:
            raise ValueError("there is no prompt; give one at least.")
        return torch.tensor(rows, dtype=torch.int64)

    def check_prompt(self, prompt: str) -> None:
        """Requires a caption that the network can make something of.

        Raises:
            ValueError: if it is empty or too long, or holds a word that no training caption held; the message names
                the nearest that one did.
        """
        self.encode([prompt])
        if self.config.known_words:
            self.captions.require_known(prompt)

    def decode(self, text: Int64[Tensor, "n l"]) -> list[str]:
        """Returns the captions of text tokens, without their pads."""
        known = self.captions.vocabulary
        return [self.captions.decode(t for t in row if t < known) for row in text.tolist()]

    def _check_text(self, text: Tensor, n: int | None = None) -> None:
        length = self.config.text_length
        if text.ndim != 2 or text.shape[1] != length or (n is not None and len(text) != n):
            wanted = "n" if n is None else n
            raise ValueError(
                f"texts have the shape ({wanted}, {length}), as `encode` makes them, got {tuple(text.shape)}."
            )
        if text.device.type == "cpu" and text.numel():
            low, high = int(text.min()), int(text.max())
            if low < 0 or high >= self.text_vocabulary:
                raise ValueError(
                    f"text tokens lie in [{low}, {high}], outside [0, {self.text_vocabulary - 1}]; make them with "
                    "`encode`."
                )

    # -- The distribution -----------------------------------------------------------------------------------------

    def _text_inputs(self, text: Tensor) -> Float[Tensor, "n l c"]:
        shifted = F.pad(text[:, :-1], (1, 0), value=self.start)
        return self.text(shifted) + self.position_text.weight

    def _image_inputs(self, text: Tensor, image: Tensor) -> Float[Tensor, "n t c"]:
        """The first image position is told the last text token, as in one sequence."""
        x = self.inputs(image)
        first = x[:, :1] + self.text(text[:, -1:])
        return torch.cat([first, x[:, 1:]], dim=1)

    def forward(
        self, text: Int64[Tensor, "n l"], image: Int64[Tensor, "n r k"]
    ) -> tuple[Float[Tensor, "n l w"], Float[Tensor, "n t v"]]:
        """Returns the logits of every text token and of every image token, given all before it.

        Raises:
            ValueError: for texts or grids of another shape, or foreign tokens.
        """
        self._check_text(text, len(image))
        self.check_grid(image)
        x = torch.cat([self._text_inputs(text), self._image_inputs(text, image)], dim=1)
        features = self.trunk(self.dropout(x))
        length = self.config.text_length
        return self.text_head(features[:, :length]), self.head(features[:, length:])

    def nll(self, text: Int64[Tensor, "n l"], image: Int64[Tensor, "n r k"]) -> Nats:
        """Returns −log P of each text, and of each image given its text, in nats."""
        of_text, of_image = self(text, image)
        flat = rearrange(image, "n r k -> n (r k)")
        return Nats(
            F.cross_entropy(of_text.float().mT, text, reduction="none").sum(dim=1),
            F.cross_entropy(of_image.float().mT, flat, reduction="none").sum(dim=1),
        )

    def loss(self, text: Int64[Tensor, "n l"], image: Int64[Tensor, "n r k"]) -> dict[str, Tensor]:
        """Returns "loss" = (text + 7 · image) / 8, both in nats per token, and "text" and "image" by themselves."""
        nats = self.nll(text, image)
        of_text = nats.text.mean() / self.config.text_length
        of_image = nats.image.mean() / self.length
        loss = (TEXT_WEIGHT * of_text + IMAGE_WEIGHT * of_image) / (TEXT_WEIGHT + IMAGE_WEIGHT)
        return {"loss": loss, "text": of_text.detach(), "image": of_image.detach()}

    # -- Drawing --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        text: Int64[Tensor, "n l"],
        source: Source | None = None,
        *,
        seed: int | None = None,
        prefix: Int64[Tensor, "n p"] | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        use_cache: bool = True,
    ) -> Int64[Tensor, "n r k"]:
        """Draws the image tokens of texts; other arguments as for `companion.image_gpt.ImageGPT.generate`.

        Raises:
            ValueError: for a negative temperature, `top_k` below 1, `top_p` outside (0, 1], a prefix that is longer
                than an image, or foreign tokens.
        """
        n, device = len(text), self.head.weight.device
        u = uniform((n, self.length), source_of(n, source, seed), device)
        return self.draw(
            text,
            u,
            prefix=prefix,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            use_cache=use_cache,
        )

    @torch.no_grad()
    def draw(
        self,
        text: Int64[Tensor, "n l"],
        u: Float[Tensor, "n t"],
        *,
        prefix: Int64[Tensor, "n p"] | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        use_cache: bool = True,
    ) -> Int64[Tensor, "n r k"]:
        """Draws the image tokens of texts by uniform numbers in [0, 1), one for each token; see `generate`."""
        n, device = len(text), self.head.weight.device
        check_choices(temperature, top_k, top_p)
        self._check_text(text)
        if prefix is None:
            prefix = torch.empty(n, 0, dtype=torch.int64)
        self.check_prefix(prefix, n)
        text = text.to(device)
        # The first image position is told the last text token; later ones are not.
        first = torch.zeros(1, self.length, 1, device=device)
        first[:, 0] = 1
        with evaluating(self):
            return self.fill(
                prefix.to(device),
                u.to(device),
                context=self._text_inputs(text),
                added=first * self.text(text[:, -1:]),
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                use_cache=use_cache,
            )

    @torch.no_grad()
    def generate_text(
        self, n: int, source: Source | None = None, *, seed: int | None = None
    ) -> Int64[Tensor, "n l"]:
        """Draws captions from the model, whose distribution is that of text and image together."""
        length, device = self.config.text_length, self.head.weight.device
        u = uniform((n, length), source_of(n, source, seed), device)
        text = torch.zeros(n, length, dtype=torch.int64, device=device)
        with evaluating(self), torch.inference_mode():
            caches = self.trunk.new_caches(length)
            place = 0

            def look() -> Tensor:
                x = self._text_inputs(text)[:, place : place + 1]
                return self.text_head(self.trunk(x, caches)[:, -1])

            def advance(token: Tensor) -> Tensor:
                nonlocal place
                place += 1
                return look()

            continue_sequence(look(), advance, u, out=text)
        return text.clone()


# --- 3. Text to image -------------------------------------------------------------------------------------------------


class Judge(Protocol):
    """What says how well images go with captions, as CLIP does."""

    def scores(self, images: Tensor, captions: Sequence[str], /) -> Tensor:
        """Returns a number for every image (row) with every caption (column), larger where they go together."""


class TextToImage(nn.Module):
    """The transformer with its tokenizer of images, and with a judge to choose among several draws.

    Args:
        model: the transformer.
        tokenizer: encoder and decoder of images; nothing here trains it.
        judge: chooses among draws; None where there is none.

    Raises:
        TypeError, ValueError: as from `companion.image_gpt.require_tokenizer`.
    """

    def __init__(self, model: DALLE, tokenizer: nn.Module, judge: nn.Module | None = None) -> None:
        super().__init__()
        require_tokenizer(model, tokenizer)
        self.model = model
        # Modules that do more than a module, which no type can say.
        self.tokenizer: Any = tokenizer
        self.judge: Any = judge

    def check_prompt(self, prompt: str, rerank: int = 1) -> None:
        """Makes sure, before anything is drawn, that `draw` can draw what is asked for.

        Raises:
            ValueError: as from `DALLE.check_prompt`, or for draws to choose from without a judge.
        """
        checks.whole(1, MOST_DRAWS, rerank=rerank)
        if rerank > 1 and self.judge is None:
            raise ValueError(
                f"rerank={rerank} needs a judge that chooses among the draws, and this model came without one."
            )
        self.model.check_prompt(prompt)

    def nll(self, x: Float[Tensor, "n c h w"], captions: Sequence[str]) -> Nats:
        """Returns −log P of captions, and of the codes of images given them, in nats."""
        return self.model.nll(self.model.encode(captions).to(x.device), self.codes(x))

    def codes(self, x: Float[Tensor, "n c h w"]) -> Int64[Tensor, "n r k"]:
        """Returns the codes of images in [−1, 1]."""
        return codes_of(self.tokenizer, x)

    @torch.no_grad()
    def draw(
        self,
        captions: Sequence[str],
        source: Source | None = None,
        *,
        seed: int | None = None,
        rerank: int = 1,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Draws an image for each caption.

        Args:
            captions: one or more.
            source: of the draws.
            seed: in place of a source; image i is then a function of the seed and of i alone.
            rerank: draws for each caption, of which the judge keeps the best.
            temperature, top_k, top_p: as for `companion.nn.decoding.restrict`.

        Returns:
            Images in [−1, 1].

        Raises:
            ValueError: for captions that cannot be read (see `DALLE.check_prompt`), or draws to choose from without a
                judge.
        """
        for caption in dict.fromkeys(captions):
            self.check_prompt(caption, rerank)
        n, device = len(captions), self.model.head.weight.device
        text = self.model.encode(captions)
        u = uniform((n, rerank, self.model.length), source_of(n, source, seed), device)
        texts = repeat(text, "n l -> (n m) l", m=rerank).split(AT_ONCE)
        numbers = rearrange(u, "n m t -> (n m) t").split(AT_ONCE)
        images = torch.cat(
            [
                self.tokenizer.detokenize(
                    self.model.draw(part, mine, temperature=temperature, top_k=top_k, top_p=top_p)
                )
                for part, mine in zip(texts, numbers, strict=True)
            ]
        )
        if rerank == 1:
            return images
        return images[self._best(images, captions, rerank)]

    def _best(self, images: Tensor, captions: Sequence[str], each: int) -> Int64[Tensor, " n"]:
        best = []
        for i, caption in enumerate(captions):
            mine = images[i * each : (i + 1) * each]
            best.append(i * each + int(self.judge.scores(mine, [caption])[:, 0].argmax()))
        return torch.tensor(best, device=images.device)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Draws captions from the model and then their images; arguments as for `draw`."""
        source = source_of(n, source, seed)
        text = self.model.generate_text(n, source)
        tokens = self.model.generate(
            text, source, temperature=temperature, top_k=top_k, top_p=top_p
        )
        return self.tokenizer.detokenize(tokens)
