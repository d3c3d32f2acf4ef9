"""The parts that convolutional networks and perceptrons are made of.

`scales` says which sides an image passes through, `Downsample` and `Upsample` lead from one to the next,
`ResidualBlock` works at one of them. Encoders, decoders, generators, discriminators and U-Nets are built from these.

Halving and doubling use 4×4 kernels, which cover the image evenly at stride 2 and so leave no chequerboard.
"""

from collections.abc import Callable
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_GRID = 8


def scales(size: int, *, halvings: int | None = None, smallest: int = SMALLEST_GRID) -> list[int]:
    """Returns the sides of the feature maps from the image down, such as [28, 14, 7].

    Args:
        size: side of the image in pixels.
        halvings: how many; by default as many as lead to a side of at most `smallest`.
        smallest: the side at which halving stops, where `halvings` is left out.

    Raises:
        ValueError: if the image is smaller than 4×4 pixels, or cannot be halved so often without a rest.
    """
    if size < 4:
        raise ValueError(f"images must be at least 4×4 pixels, got {size}×{size}.")
    sides = [size]
    while len(sides) <= halvings if halvings is not None else sides[-1] > smallest:
        if sides[-1] % 2:
            wanted = f"to {smallest} or less" if halvings is None else f"{halvings} times"
            raise ValueError(
                f"images of {size}×{size} pixels cannot be halved {wanted} without a rest; "
                "use a size such as 28, 32 or 64."
            )
        sides.append(sides[-1] // 2)
    return sides


def he_initialise(module: nn.Module) -> None:
    """Draws all linear and convolutional weights with variance 2 / (inputs a number depends on); offsets are zero.

    So the signal keeps its scale from layer to layer (He et al. 2015). torch's own start lets it fade by about a half
    per layer, and a bottleneck then spends hundreds of steps on the mean image.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            inputs: float = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                # Of a kernel's positions only one in stride² meets any one pixel.
                kernel = layer.weight[0, 0].numel() / (layer.stride[0] * layer.stride[1])
                inputs = layer.in_channels * kernel
            nn.init.normal_(layer.weight, 0.0, (2 / inputs) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def perceptron(
    *sizes: int, activation: Callable[[], nn.Module] = nn.SiLU, he: bool = True
) -> nn.Sequential:
    """Returns linear layers from size to size with an activation between them: `perceptron(784, 256, 10)`.

    Args:
        sizes: of the input, the hidden layers and the output; two at least.
        activation: makes what stands between two layers.
        he: draw the weights as `he_initialise` does; otherwise they are as torch draws them.

    Raises:
        ValueError: if there are fewer than two sizes, or one is below 1.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"a perceptron needs an input and an output size of at least 1, got {sizes}."
        )
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    network = nn.Sequential(*layers[:-1])
    if he:
        he_initialise(network)
    return network


class Downsample(nn.Conv2d):
    """A convolution that halves the side.

    Args:
        channels_in: of what comes in.
        channels_out: of what goes out.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 4, stride=2, padding=1)


class Upsample(nn.ConvTranspose2d):
    """A transposed convolution that doubles the side.

    Args:
        channels_in: of what comes in.
        channels_out: of what goes out.
        bias: add an offset to each channel; a normalisation that follows makes it useless.
    """

    def __init__(self, channels_in: int, channels_out: int, *, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 4, stride=2, padding=1, bias=bias)


def shuffle_up(channels_in: int, channels_out: int) -> tuple[nn.Module, nn.Module]:
    """Returns two layers that double the side by moving channels into space (Shi et al. 2016)."""
    return nn.Conv2d(channels_in, 4 * channels_out, 3, padding=1), nn.PixelShuffle(2)


class ResidualBlock(nn.Module):
    """x + convolution(silu(convolution(silu(x)))), both 3×3; it begins as the identity.

    A diffusion model's block has the same form, with a group normalisation before each activation and the embedding
    of the time or the label added between the convolutions (Ho et al. 2020, appendix B): both are off by default.
    They are off in autoencoders, where an image's code should not depend on far-away parts of the canvas.

    Args:
        channels: of what comes in.
        channels_out: of what goes out; where it differs, a 1×1 convolution stands in for the identity.
        embedding: length of the vector that tells the block the time or the label; 0 for a block without.
        groups: groups of the normalisation; 0 for none.
        dropout: share of the numbers dropped before the second convolution, in training only.

    Raises:
        ValueError: if the channels cannot be cut into the groups.
    """

    def __init__(
        self,
        channels: int,
        channels_out: int | None = None,
        *,
        embedding: int = 0,
        groups: int = 0,
        dropout: float | int = 0.0,
    ) -> None:
        super().__init__()
        out = channels if channels_out is None else channels_out
        if groups and (channels % groups or out % groups):
            raise ValueError(
                f"{channels} and {out} channels cannot be cut into {groups} groups: choose a common divisor."
            )
        self.first = nn.Conv2d(channels, out, 3, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)
        self.shortcut = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)
        self.norm_1 = nn.GroupNorm(groups, channels) if groups else nn.Identity()
        self.norm_2 = nn.GroupNorm(groups, out) if groups else nn.Identity()
        self.embed = nn.Linear(embedding, out) if embedding else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "n c h w"], embedding: Float[Tensor, "n e"] | None = None
    ) -> Float[Tensor, "n o h w"]:
        """Returns maps of the same side.

        Args:
            x: feature maps.
            embedding: of the time or the label, for a block that was built to be told.

        Raises:
            ValueError: if an embedding is missing, or given to a block without.
        """
        if (embedding is None) != (self.embed is None):
            wants = "takes no embedding" if self.embed is None else "needs an embedding"
            raise ValueError(f"this block {wants}, as it was built.")
        hidden = self.first(F.silu(self.norm_1(x)))
        if embedding is not None and self.embed is not None:
            hidden = hidden + self.embed(F.silu(embedding))[:, :, None, None]
        hidden = self.second(self.dropout(F.silu(self.norm_2(hidden))))
        return self.shortcut(x) + hidden
