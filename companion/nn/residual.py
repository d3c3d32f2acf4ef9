"""Residual convolutional encoder and decoder for square images: two halvings of the side, blocks between them.

There is no batch normalisation, so that an image's code does not depend on the images beside it; the blocks
begin as the identity instead (their last convolution starts at zero), which keeps a deep stack trainable.
"""

import itertools

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from companion.nn.convolutional import he_initialise


class ResidualBlock(nn.Module):
    """x + convolution(silu(convolution(silu(x)))), 3×3 and equally wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + self.second(F.silu(self.first(F.silu(x))))


def _check(size: int, width: int, depth: int) -> None:
    if size < 4 or size % 4:
        raise ValueError(f"size must be a multiple of 4, got {size}; pad or resize the images.")
    if width < 1 or depth < 0:
        raise ValueError(f"width must be at least 1 and depth 0, got {width} and {depth}.")


class ResidualEncoder(nn.Module):
    """Images to a vector: side s with `width` channels at s/2, twice as many at s/4, then one linear layer.

    Args:
        channels: of the images.
        size: their side, a multiple of 4.
        width: channels at half the side; there are twice as many at a quarter.
        depth: residual blocks at each of the two scales.
        outputs: length of the vector.

    Raises:
        ValueError: if the side is no multiple of 4, or a number is too small.
    """

    def __init__(self, channels: int, size: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        _check(size, width, depth)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            *(ResidualBlock(width) for _ in range(depth)),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            *(ResidualBlock(2 * width) for _ in range(depth)),
            nn.SiLU(),
        )
        self.head = nn.Linear(2 * width * (size // 4) ** 2, outputs)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n outputs"]:
        return self.head(self.body(x).flatten(1))


class ResidualDecoder(nn.Module):
    """A vector to images: the encoder's mirror image; sides double by moving channels into space.

    Args:
        inputs: length of the vector.
        channels: of the images.
        size: their side, a multiple of 4.
        width: channels at half the side; there are twice as many at a quarter.
        depth: residual blocks at each of the two scales.

    Raises:
        ValueError: if the side is no multiple of 4, or a number is too small.
    """

    def __init__(self, inputs: int, channels: int, size: int, width: int, depth: int) -> None:
        super().__init__()
        _check(size, width, depth)
        self.shape = (2 * width, size // 4, size // 4)
        self.stem = nn.Linear(inputs, 2 * width * (size // 4) ** 2)
        self.body = nn.Sequential(
            *(ResidualBlock(2 * width) for _ in range(depth)),
            nn.SiLU(),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            *(ResidualBlock(width) for _ in range(depth)),
            nn.SiLU(),
            nn.Conv2d(width, 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, z: Float[Tensor, "n inputs"]) -> Float[Tensor, "n c h w"]:
        return self.body(self.stem(z).unflatten(1, self.shape))


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Returns linear layers of the given sizes with SiLU between them, with He initialisation.

    Raises:
        ValueError: if there are fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"an MLP needs an input and an output size, got {sizes}.")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    network = nn.Sequential(*layers[:-1])
    he_initialise(network)
    return network
