"""A masked autoencoder: hide most patches of an image, encode the rest, guess what was hidden.

References:
    He et al., Masked Autoencoders Are Scalable Vision Learners, 2022: the encoder sees only the visible
        patches; mask tokens enter at the decoder; the loss counts the hidden patches only; fixed sine-cosine
        positions; optionally each patch is normalised before it becomes a target.
    Dosovitskiy et al., An Image is Worth 16x16 Words, 2021: an image as a sequence of patches.

Deviations: it is small, for images of 28 to 32 pixels; there is no class token, since the mean over the visible
tokens serves as the feature vector; decoder and encoder have the same head count; a share of 0, which the paper
does not consider, makes the loss count all patches, so that the plain autoencoder is the end of the same scale.

Shapes: `n` images, `t` patches of `d` numbers each, `v` visible patches, `c` channels of an image or of tokens.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from companion.nn.encoder import EncoderBlock
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


def hidden_count(patches: int, share: float | int) -> int:
    """Returns how many patches a share hides: the nearest whole number, but one at least stays visible.

    Raises:
        ValueError: if the share does not lie in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}: choose a share of hidden patches in [0, 1)")
    return min(round(share * patches), patches - 1)


def random_masking(
    n: int,
    patches: int,
    share: float | int,
    source: Source,
    device: str | torch.device | None = None,
) -> Masking:
    """Hides the same number of patches in every image, at places drawn uniformly without replacement.

    Args:
        n: number of images.
        patches: patches of an image.
        share: of the patches to hide, in [0, 1); see `hidden_count`.
        source: of the draws.
        device: where the result goes; by default it stays with the source's generator.
    """
    # A random order by sorting uniform numbers (He et al., "simple implementation" in section 3).
    order = uniform((n, patches), source, device).argsort(dim=1)
    kept = patches - hidden_count(patches, share)
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


class MaskedAutoencoder(nn.Module):
    """An asymmetric autoencoder of patches.

    Args:
        channels: of the images.
        size: height and width of the images, in pixels.
        patch: height and width of a patch, in pixels; it divides the size.
        width: channels of the encoder's tokens, a multiple of 4 and of `heads`.
        layers: blocks of the encoder.
        decoder_width: channels of the decoder's tokens, a multiple of 4 and of `heads`.
        decoder_layers: blocks of the decoder.
        heads: attention heads of every block.
        share: of the patches that training hides.
        normalise: predict each patch after its own mean and standard deviation were taken out.
        learned_positions: train the position codes, from the fixed ones on.

    Raises:
        ValueError: for sizes that cannot work.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        patch: int = 4,
        width: int = 96,
        layers: int = 4,
        decoder_width: int = 64,
        decoder_layers: int = 2,
        heads: int = 4,
        share: float | int = 0.75,
        normalise: bool = False,
        learned_positions: bool = False,
    ) -> None:
        super().__init__()
        if patch < 1 or size % patch:
            raise ValueError(
                f"patches of {patch} pixels do not tile images of {size}: choose a divisor"
            )
        self.channels, self.size, self.patch = channels, size, patch
        self.width, self.layers, self.heads = width, layers, heads
        self.decoder_width, self.decoder_layers = decoder_width, decoder_layers
        self.share, self.normalise = share, normalise
        self.learned_positions = learned_positions
        side = size // patch
        self.patches = side * side
        hidden_count(self.patches, share)  # raises for a share that makes no sense
        numbers = channels * patch * patch
        self.embed = nn.Linear(numbers, width)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(decoder_width))
        self.decoder_blocks = nn.ModuleList(
            EncoderBlock(decoder_width, heads) for _ in range(decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.head = nn.Linear(decoder_width, numbers)
        for name, count in (("encoder_positions", width), ("decoder_positions", decoder_width)):
            code = nn.Parameter(positions(side, count), requires_grad=learned_positions)
            self.register_parameter(name, code)
        nn.init.normal_(self.mask_token, std=0.02)

    def masking(self, n: int, source: Source, share: float | int | None = None) -> Masking:
        """Draws which patches of n images are visible; the training's share unless another is given."""
        share = self.share if share is None else share
        return random_masking(n, self.patches, share, source, self.mask_token.device)

    def encode(
        self, x: Float[Tensor, "n c h w"], visible: Int64[Tensor, "n v"] | None = None
    ) -> Float[Tensor, "n v k"]:
        """Returns the tokens of the visible patches, or of all; the hidden ones are never touched.

        Args:
            x: images in [−1, 1].
            visible: positions of the visible patches; all of them, in order, if left out.
        """
        tokens, codes = patchify(x, self.patch), self.encoder_positions
        if visible is not None:
            tokens, codes = gather(tokens, visible), codes[visible]
        hidden = self.embed(tokens) + codes
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Returns one vector an image: the mean over the tokens, with every patch visible."""
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
        patches = patchify(x, self.patch)
        if not self.normalise:
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

        With `normalise`, the hidden patches get back the mean and deviation of the truth, as in the paper's
        figures: a picture to look at, and no prediction.
        """
        patches = patchify(x, self.patch)
        predicted = self(x, masking).to(x)
        if self.normalise:
            deviation = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            predicted = predicted * deviation + patches.mean(dim=-1, keepdim=True)
        kept = torch.where(masking.hidden[..., None], predicted, patches)
        return unpatchify(kept, self.patch, self.channels)
