"""CLIP: images and captions as points of one sphere, where a picture lies near its description.

After Radford et al. (2021, "Learning transferable visual models from natural language supervision"). Two transformers
look at the patches of an image and at the tokens of a caption; each ends in a vector of unit length. In a batch of N
pairs the cosines of all N² combinations, scaled, are the logits of two classifications: which caption is the image's,
and which image is the caption's.

Deviations:
- Captions that occur twice in a batch are common where there are few of them. As they stand, one of two equal captions
  would count as wrong; by default such pairs are left out of the denominators (`same_captions`).
- The merges of the text tokenizer belong to the config, so that a checkpoint is complete.
- There is no start token; the text ends in an end token, at which its feature is read.

Shapes: `n` images, `c` channels, `h`, `w` pixels; `m` captions of `t` tokens; `d` numbers of a feature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.nn.collective import rows_of_processes
from companion.nn.tokenizer import BytePairTokenizer
from companion.nn.transformer import Block, initialise

SameCaptions = Literal["masked", "positive", "negative"]

# The logit scale starts at 1/0.07 and never exceeds 100 (section 2.5).
FIRST_LOG_SCALE = math.log(1 / 0.07)
MOST_LOG_SCALE = math.log(100)


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """The sizes of a `CLIP`, and its tokens.

    Attributes:
        channels: of the images.
        size: their side in pixels, a multiple of `patch`.
        patch: side of a patch in pixels.
        width: channels of both transformers, a multiple of `heads`.
        layers: blocks of each.
        heads: attention heads of each block.
        features: numbers of the vector that an image or a caption ends in.
        context: the longest caption in tokens, the end token included.
        same_captions: what equal captions in a batch are to one another's images. "masked": neither right nor wrong;
            "positive": as right as their own, in equal shares; "negative": wrong, as in the paper.
        merges: of the text tokenizer, two numbers a merge; see `BytePairTokenizer`.
        known_words: of its training texts.

    Raises:
        ValueError: for a value that cannot work; the message names it and the remedy.
    """

    channels: int = 1
    size: int = 28
    patch: int = 4
    width: int = 64
    layers: int = 2
    heads: int = 4
    features: int = 64
    context: int = 32
    same_captions: SameCaptions = "masked"
    merges: tuple[int, ...] = ()
    known_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, patch=self.patch)
        checks.whole(1, width=self.width, heads=self.heads, features=self.features)
        checks.whole(1, checks.MOST_LAYERS, layers=self.layers)
        checks.whole(2, context=self.context)
        checks.one_of(get_args(SameCaptions), same_captions=self.same_captions)
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}: choose width "
                f"{self.heads * math.ceil(self.width / self.heads)} or other heads."
            )
        if self.size % self.patch:
            raise ValueError(
                f"size {self.size} is not a multiple of patch {self.patch}: its patches "
                f"do not tile the images. Choose a patch that divides {self.size}."
            )
        checks.tuple_of(int, merges=self.merges)
        checks.tuple_of(str, known_words=self.known_words)
        BytePairTokenizer(self.merges)


class ImageTower(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021): patches and one more token, at which the feature is read."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        c = config
        places = (c.size // c.patch) ** 2
        self.patch = c.patch
        self.embed = nn.Linear(c.channels * c.patch**2, c.width)
        self.summary = nn.Parameter(torch.zeros(c.width))
        self.position_embedding = nn.Embedding(places + 1, c.width)
        self.norm_in = nn.LayerNorm(c.width)
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.project = nn.Linear(c.width, c.features, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        patches = rearrange(x, "n c (r p) (k q) -> n (r k) (c p q)", p=self.patch, q=self.patch)
        tokens = self.embed(patches)
        summary = self.summary.to(tokens.dtype).expand(len(x), 1, -1)
        tokens = torch.cat([summary, tokens], dim=1) + self.position_embedding.weight
        tokens = self.norm_in(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.project(self.norm(tokens[:, 0]))


class TextTower(nn.Module):
    """A causal transformer over the tokens of a caption, whose feature is read at the end token.

    What follows the end token is padding, and no token sees what comes after it.
    """

    def __init__(self, config: CLIPConfig, vocabulary: int) -> None:
        super().__init__()
        c = config
        self.token_embedding = nn.Embedding(vocabulary, c.width)
        self.position_embedding = nn.Embedding(c.context, c.width)
        self.blocks = nn.ModuleList(Block(c.width, c.heads, causal=True) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.project = nn.Linear(c.width, c.features, bias=False)

    def forward(
        self, tokens: Int64[Tensor, "m t"], ends: Int64[Tensor, " m"]
    ) -> Float[Tensor, "m d"]:
        positions = self.position_embedding.weight[: tokens.shape[1]]
        hidden = self.token_embedding(tokens) + positions
        for block in self.blocks:
            hidden = block(hidden)
        last = hidden[torch.arange(len(tokens), device=tokens.device), ends]
        return self.project(self.norm(last))


def symmetric_cross_entropy(
    logits: Float[Tensor, "n n"], same: Bool[Tensor, "n n"], same_captions: SameCaptions = "masked"
) -> Float[Tensor, ""]:
    """Returns the mean of the two classifications' cross-entropies, over rows and over columns, in nats.

    Args:
        logits: of image i (row) and caption j (column); pair i is on the diagonal.
        same: whether captions i and j are equal.
        same_captions: what that means, as in `CLIPConfig`.
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if same_captions == "masked":
        logits = logits.masked_fill(same & ~own, -math.inf)
    right = (same if same_captions == "positive" else own).to(logits.dtype)
    losses = []
    for rows, target in ((logits, right), (logits.T, right.T)):
        log_p = rows.log_softmax(dim=1)
        # A logit of −∞ has the target 0, and their product would not be a number.
        picked = torch.where(target > 0, log_p, torch.zeros_like(log_p)) * target
        losses.append(-(picked.sum(dim=1) / target.sum(dim=1)).mean())
    return (losses[0] + losses[1]) / 2


class CLIP(nn.Module):
    """Scores how well images and captions go together.

    Args:
        config: the sizes and tokens.

    Attributes:
        tokenizer: of the captions, made of the config's merges.
    """

    Config = CLIPConfig

    def __init__(self, config: CLIPConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or CLIPConfig()
        self.tokenizer = BytePairTokenizer(c.merges, c.known_words)
        self.image_tower = ImageTower(c)
        # Beyond the tokenizer's tokens: the end of a text, and padding.
        self.text_tower = TextTower(c, self.tokenizer.vocabulary + 2)
        for tower in (self.image_tower, self.text_tower):
            initialise(tower, c.width**-0.5, c.layers)
        self.log_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE))

    # --- Captions -----------------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """The token that ends every caption."""
        return self.tokenizer.vocabulary

    @property
    def pad(self) -> int:
        """The token that fills short captions up."""
        return self.tokenizer.vocabulary + 1

    def tokens_of(self, caption: str) -> list[int]:
        """Returns the tokens of one caption, the end token last.

        Raises:
            ValueError: if it is empty, or longer than the context.
        """
        if not caption.strip():
            raise ValueError(
                "the caption is empty; write what the image shows, such as 'a red three left of a blue seven'."
            )
        tokens = self.tokenizer.encode(caption)
        most = self.config.context - 1
        if len(tokens) > most:
            raise ValueError(
                f"the caption has {len(tokens)} tokens, but this CLIP reads at most {most}: shorten "
                f"{caption if len(caption) <= 60 else caption[:57] + '…'!r}."
            )
        return [*tokens, self.end]

    def check_prompt(self, prompt: str) -> None:
        """Requires a caption that the network can make something of.

        Raises:
            ValueError: if it is empty or too long, or holds a word that no training caption held; the message names
                the nearest that one did.
        """
        self.tokens_of(prompt)
        self.tokenizer.require_known(prompt)

    def tokenize(self, captions: Sequence[str]) -> tuple[Int64[Tensor, "m t"], Int64[Tensor, " m"]]:
        """Returns the tokens of captions, padded to the longest, and the place of each one's end token.

        Raises:
            ValueError: for a caption that is empty or too long, or a single one that is not in a list.
        """
        if isinstance(captions, str):
            raise ValueError("captions is one string; give a list of captions, such as [caption].")
        rows = [self.tokens_of(caption) for caption in captions]
        longest = max((len(row) for row in rows), default=1)
        padded = [row + [self.pad] * (longest - len(row)) for row in rows]
        device = self.log_scale.device
        tokens = torch.tensor(padded, dtype=torch.int64, device=device).reshape(len(rows), longest)
        return tokens, torch.tensor([len(row) - 1 for row in rows], device=device)

    # --- Features -----------------------------------------------------------------------------------------------------

    def encode_image(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Returns the features of images, of unit length, in float32.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        checks.images(x, self.config.channels, self.config.size, "CLIP")
        return F.normalize(self.image_tower(x).float(), dim=1)

    def encode_text(self, captions: Sequence[str]) -> Float[Tensor, "m d"]:
        """Returns the features of captions, of unit length, in float32.

        Raises:
            ValueError: for a caption that is empty or too long.
        """
        return F.normalize(self.text_tower(*self.tokenize(captions)).float(), dim=1)

    def scores(self, x: Float[Tensor, "n c h w"], captions: Sequence[str]) -> Float[Tensor, "n m"]:
        """Returns the cosine of every image with every caption; the higher, the better they go together.

        Raises:
            TypeError, ValueError: as from `encode_image` and `encode_text`.
        """
        images, texts = self.encode_image(x), self.encode_text(captions)
        # In bfloat16 cosines near 1 would differ by steps of 0.004.
        with torch.autocast(x.device.type, enabled=False):
            return images @ texts.T

    forward = scores

    # --- Training -----------------------------------------------------------------------------------------------------

    def loss(
        self, x: Float[Tensor, "n c h w"], captions: Sequence[str]
    ) -> dict[str, Float[Tensor, ""]]:
        """Returns the symmetric cross-entropy over the pairs of all processes.

        Every process has to hold as many pairs. With accumulated gradients each part has its own negatives.

        Args:
            x: images in [−1, 1].
            captions: one for each.

        Returns:
            "loss", in nats, and the logit "scale".

        Raises:
            ValueError: unless there are as many captions as images; or for a caption that is empty or too long.
        """
        if len(x) != len(captions):
            raise ValueError(
                f"{len(x)} images need as many captions, got {len(captions)}: give one for each."
            )
        if self.training:
            # In place, as in the paper: a scale beyond the limit would have no gradient to come back by.
            with torch.no_grad():
                self.log_scale.clamp_(max=MOST_LOG_SCALE)
        images = rows_of_processes(self.encode_image(x))
        texts = rows_of_processes(self.encode_text(captions))
        scale = self.log_scale.exp()
        with torch.autocast(x.device.type, enabled=False):
            logits = scale * images @ texts.T
        loss = symmetric_cross_entropy(logits, self._equal(captions), self.config.same_captions)
        return {"loss": loss, "scale": scale}

    def _equal(self, captions: Sequence[str]) -> Bool[Tensor, "m m"]:
        """Says which captions of all processes are equal."""
        # All to one length, which is the same in every process; whole numbers below 2²⁴ are exact as floats.
        rows = torch.full((len(captions), self.config.context), self.pad)
        for row, caption in zip(rows, captions, strict=True):
            tokens = self.tokens_of(caption)
            row[: len(tokens)] = torch.tensor(tokens)
        everyone = rows_of_processes(rows.float().to(self.log_scale.device))
        return (everyone[:, None] == everyone[None]).all(dim=2)
