"""A masked autoencoder: hide most patches of an image, encode the rest, guess what was hidden.

References:
    He et al., Masked Autoencoders Are Scalable Vision Learners, 2022: the encoder sees only the visible
        patches; mask tokens enter at the decoder; the loss counts the hidden patches only; fixed sine-cosine
        positions; optionally each patch is normalised before it becomes a target.
    Dosovitskiy et al., An Image is Worth 16x16 Words, 2021: an image as a sequence of patches.

Deviations: it is small, for images of 28 to 32 pixels; there is no class token, since the mean over the visible
tokens serves as the feature vector; decoder and encoder have the same head count; a mask ratio of 0, which the paper
does not consider, makes the loss count all patches, so that the plain autoencoder is the end of the same scale.

Shapes: `n` images, `t` patches of `d` numbers each, `v` visible patches, `c` channels of an image or of tokens.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from companion import checks
from companion.nn.transformer import Block
from companion.randomness import Source, uniform


class Masking(NamedTuple):
    """Which patches of each image are visible.

    Attributes:
        visible: "n v", the positions of the visible patches, in random order.
        restore: "n t", where in (visible, hidden) each position's patch stands.
        hidden: "n t", True where a patch is hidden.
    """

    visible: Int64[Tensor, "n v"]
    restore: Int64[Tensor, "n t"]
    hidden: Bool[Tensor, "n t"]


def patchify(images: Float[Tensor, "n c h w"], patch: int) -> Float[Tensor, "n t d"]:
    """Cuts images into square patches, row by row; a patch holds its pixels row by row, channels last."""
    return rearrange(images, "n c (i a) (j b) -> n (i j) (a b c)", a=patch, b=patch)


def unpatchify(
    patches: Float[Tensor, "n t d"], patch: int, channels: int
) -> Float[Tensor, "n c h w"]:
    """Puts the patches of square images back; the inverse of `patchify`."""
    side = math.isqrt(patches.shape[1])
    return rearrange(
        patches, "n (i j) (a b c) -> n c (i a) (j b)", i=side, a=patch, b=patch, c=channels
    )


def hidden_count(patches: int, mask_ratio: float | int) -> int:
    """Returns how many patches a mask ratio hides: the nearest whole number, but one at least stays visible.

    Raises:
        ValueError: if the ratio does not lie in [0, 1).
    """
    checks.number(0, 1, mask_ratio=mask_ratio)
    return min(round(mask_ratio * patches), patches - 1)


def random_masking(
    n: int,
    patches: int,
    mask_ratio: float | int,
    source: Source,
    device: str | torch.device | None = None,
) -> Masking:
    """Hides the same number of patches in every image, at places drawn uniformly without replacement.

    Args:
        n: number of images.
        patches: patches of an image.
        mask_ratio: share of the patches to hide, in [0, 1); see `hidden_count`.
        source: of the draws.
        device: where the result goes; by default it stays with the source's generator.
    """
    # A random order by sorting uniform numbers (He et al., "simple implementation" in section 3).
    order = uniform((n, patches), source, device).argsort(dim=1)
    kept = patches - hidden_count(patches, mask_ratio)
    restore = order.argsort(dim=1)
    return Masking(order[:, :kept], restore, restore >= kept)


def gather(tokens: Float[Tensor, "n t c"], places: Int64[Tensor, "n m"]) -> Float[Tensor, "n m c"]:
    """Picks each image's own tokens."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def positions(side: int, width: int) -> Float[Tensor, "t c"]:
    """Returns fixed sine-cosine codes of the places of a side × side grid, row by row.

    Half of the channels tell the row, half the column; each half holds sines and cosines of frequencies
    10000^(−i/m), i = 0 … m − 1.

    Raises:
        ValueError: if the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width is {width}: sine-cosine positions in a plane need a multiple of 4")
    frequency = 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * frequency
    code = torch.cat([angle.sin(), angle.cos()], dim=1)  # of one coordinate
    rows = code[:, None].expand(side, side, -1)
    columns = code[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderConfig:
    """The settings of a `MaskedAutoencoder`.

    Attributes:
        channels: of the images.
        size: height and width of the images, in pixels.
        patch: height and width of a patch, in pixels; it divides the size.
        width: channels of the encoder's tokens, a multiple of 4 and of `heads`.
        layers: blocks of the encoder.
        decoder_width: channels of the decoder's tokens, a multiple of 4 and of `heads`.
        decoder_layers: blocks of the decoder.
        heads: attention heads of every block.
        mask_ratio: share of the patches that training hides, in [0, 1).
        normalise_targets: predict each patch after its own mean and standard deviation were taken out.
        learned_positions: train the position codes, from the fixed ones on.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    patch: int = 4
    width: int = 64
    layers: int = 3
    decoder_width: int = 48
    decoder_layers: int = 1
    heads: int = 4
    mask_ratio: float | int = 0.75
    normalise_targets: bool = False
    learned_positions: bool = False

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, patch=self.patch, heads=self.heads)
        checks.whole(0, checks.MOST_LAYERS, layers=self.layers, decoder_layers=self.decoder_layers)
        checks.flag(normalise_targets=self.normalise_targets)
        checks.flag(learned_positions=self.learned_positions)
        checks.number(0, 1, mask_ratio=self.mask_ratio)
        if self.size % self.patch:
            raise ValueError(
                f"patch is {self.patch} and size {self.size}: such patches do not tile the images; choose a divisor"
            )
        for name in ("width", "decoder_width"):
            width = getattr(self, name)
            checks.whole(1, **{name: width})
            if width % math.lcm(4, self.heads):
                raise ValueError(
                    f"{name} is {width}: choose a multiple of 4, for the positions, and of the {self.heads} heads"
                )
        if self.normalise_targets and self.channels * self.patch**2 == 1:
            raise ValueError(
                "normalise_targets takes mean and deviation of each patch, but a grey patch of 1 pixel has no "
                "deviation: choose a larger patch, or leave normalise_targets out"
            )


class MaskedAutoencoder(nn.Module):
    """An asymmetric autoencoder of patches.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "masked-autoencoder".
    """

    Config = MaskedAutoencoderConfig

    encoder_positions: nn.Parameter
    decoder_positions: nn.Parameter

    def __init__(self, config: MaskedAutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or MaskedAutoencoderConfig()
        side = c.size // c.patch
        self.patches = side * side
        numbers = c.channels * c.patch**2
        self.embed = nn.Linear(numbers, c.width)
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.project = nn.Linear(c.width, c.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(c.decoder_width))
        self.decoder_blocks = nn.ModuleList(
            Block(c.decoder_width, c.heads) for _ in range(c.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(c.decoder_width)
        self.head = nn.Linear(c.decoder_width, numbers)
        widths = (("encoder_positions", c.width), ("decoder_positions", c.decoder_width))
        for name, width in widths:
            code = nn.Parameter(positions(side, width), requires_grad=c.learned_positions)
            self.register_parameter(name, code)
        nn.init.normal_(self.mask_token, std=0.02)

    def masking(self, n: int, source: Source, mask_ratio: float | int | None = None) -> Masking:
        """Draws which patches of n images are visible; by the training's mask ratio unless another is given."""
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        return random_masking(n, self.patches, ratio, source, self.mask_token.device)

    def encode(
        self, x: Float[Tensor, "n c h w"], visible: Int64[Tensor, "n v"] | None = None
    ) -> Float[Tensor, "n v k"]:
        """Returns the tokens of the visible patches, or of all; the hidden ones are never touched.

        Args:
            x: images in [−1, 1].
            visible: positions of the visible patches; all of them, in order, if left out.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        checks.images(x, self.config.channels, self.config.size, "masked autoencoder")
        tokens = patchify(x, self.config.patch)
        codes: Tensor = self.encoder_positions
        if visible is not None:
            tokens, codes = gather(tokens, visible), codes[visible]
        hidden = self.embed(tokens) + codes
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Returns one vector per image: the mean over the tokens, with every patch visible."""
        return self.encode(x).mean(dim=1)

    def decode(
        self, tokens: Float[Tensor, "n v k"], restore: Int64[Tensor, "n t"]
    ) -> Float[Tensor, "n t d"]:
        """Returns a prediction of every patch, in the images' own order.

        Args:
            tokens: of the visible patches, from `encode`.
            restore: where each position's patch stands in (visible, hidden), from a `Masking`.
        """
        known = self.project(tokens)
        n, kept, width = known.shape
        blank = self.mask_token.to(known).expand(n, self.patches - kept, width)
        hidden = gather(torch.cat([known, blank], dim=1), restore) + self.decoder_positions
        for block in self.decoder_blocks:
            hidden = block(hidden)
        return self.head(self.decoder_norm(hidden))

    def forward(self, x: Float[Tensor, "n c h w"], masking: Masking) -> Float[Tensor, "n t d"]:
        """Predicts all patches from the visible ones."""
        return self.decode(self.encode(x, masking.visible), masking.restore)

    def targets(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        """Returns what the patches should be predicted as: themselves, or standardised one by one."""
        patches = patchify(x, self.config.patch)
        if not self.config.normalise_targets:
            return patches
        mean = patches.mean(dim=-1, keepdim=True)
        variance = patches.var(dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def loss(self, x: Float[Tensor, "n c h w"], source: Source) -> dict[str, Float[Tensor, ""]]:
        """Returns the mean of `errors`."""
        return {"loss": self.errors(x, source).mean()}

    def errors(self, x: Float[Tensor, "n c h w"], source: Source) -> Float[Tensor, " n"]:
        """Returns each image's mean squared error per number of the hidden patches, for masks drawn here.

        Where nothing is hidden, every patch counts.

        Args:
            x: images in [−1, 1].
            source: of the masks.
        """
        masking = self.masking(len(x), source)
        error = F.mse_loss(self(x, masking).float(), self.targets(x), reduction="none").mean(-1)
        if masking.visible.shape[1] < self.patches:
            # Every image hides the same number, so what is picked is a rectangle again.
            error = error[masking.hidden].reshape(len(x), -1)
        return error.mean(dim=1)

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, "n c h w"], masking: Masking
    ) -> Float[Tensor, "n c h w"]:
        """Returns the images with predictions in the hidden patches and the truth in the visible ones.

        With `normalise_targets`, the hidden patches get back the mean and deviation of the truth, as in the paper's
        figures: a picture to look at, and no prediction.
        """
        patches = patchify(x, self.config.patch)
        predicted = self(x, masking).to(x)
        if self.config.normalise_targets:
            deviation = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            predicted = predicted * deviation + patches.mean(dim=-1, keepdim=True)
        kept = torch.where(masking.hidden[..., None], predicted, patches)
        return unpatchify(kept, self.config.patch, self.config.channels)
