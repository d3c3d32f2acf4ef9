"""Convolutional encoders and decoders, from square images to vectors and back.

`ConvEncoder` and `ConvDecoder` halve the image until its side is at most 8 (28 → 14 → 7, 32 → 16 → 8, 64 → 32 → 16 → 8)
and double the channels each time; two linear layers follow. `ResidualEncoder` and `ResidualDecoder` halve twice, with
residual blocks at each scale. Each decoder goes its encoder's way back.

There is no normalisation: batch normalisation would make an image's code depend on its neighbours in the batch, group
normalisation on far-away parts of the canvas, and networks of this depth train well without.
"""

from itertools import pairwise

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.nn.layers import (
    Downsample,
    ResidualBlock,
    Upsample,
    he_initialise,
    scales,
    shuffle_up,
)


class ConvEncoder(nn.Module):
    """Images to vectors; about 0.35 M parameters for grey 28×28 images at width 16.

    Args:
        channels: of the images.
        size: side of the images in pixels.
        width: channels of the first feature map; each halving doubles them.
        out: numbers per vector.

    Raises:
        ValueError: if a number is not positive, or the size cannot be halved down to 8 or less.
    """

    def __init__(self, channels: int = 1, size: int = 28, width: int = 16, out: int = 32) -> None:
        super().__init__()
        checks.whole(1, channels=channels, size=size, width=width, out=out)
        sides = scales(size)
        self.channels, self.size = channels, size
        self.grid, self.stride = sides[-1], size // sides[-1]
        widths = [width * 2**i for i in range(len(sides))]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        for before, after in pairwise(widths):
            layers += [Downsample(before, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * self.grid**2, 6 * width)
        self.head = nn.Linear(6 * width, out)
        he_initialise(self)
        # No activation follows, so nothing is lost and half the variance suffices.
        self.head.weight.data.div_(2**0.5)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out"]:
        """Returns one vector per image.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have other channels or another size than the encoder was built for; `dense` takes
                larger canvases.
        """
        checks.images(x, self.channels, self.size, "encoder")
        # "n c h w -> n (c h w)": the order of the weights, whatever the order in memory.
        maps = rearrange(self.trunk(x), "n c h w -> n (c h w)")
        return self.head(F.silu(self.hidden(maps)))

    def dense(self, x: Float[Tensor, "n c H W"]) -> Float[Tensor, "n out rows columns"]:
        """Returns the vectors of all windows of a larger canvas, computed at once.

        The linear layers slide over the feature maps as convolutions do, so that neighbouring windows share the
        work. Window (i, j) covers the pixels from (i·stride, j·stride) on, `size` of them in each direction. Its
        vector differs from that of the window cut out only in that the window's rim sees its surroundings where
        the cut-out sees the padding.

        Args:
            x: canvases with at least `size` pixels in each direction, multiples of `stride`.

        Raises:
            ValueError: if the canvas has other channels, is too small or is no multiple of `stride`.
        """
        sides = tuple(x.shape[2:])
        if (
            x.shape[1] != self.channels
            or min(sides) < self.size
            or any(s % self.stride for s in sides)
        ):
            raise ValueError(
                f"a canvas must have {self.channels} channels and sides of at least {self.size} pixels that "
                f"are multiples of {self.stride}, got {tuple(x.shape[1:])}."
            )
        kernel = rearrange(self.hidden.weight, "o (c h w) -> o c h w", h=self.grid, w=self.grid)
        hidden = F.silu(F.conv2d(self.trunk(x), kernel, self.hidden.bias))
        return F.conv2d(hidden, self.head.weight[:, :, None, None], self.head.bias)


class ConvDecoder(nn.Module):
    """Vectors to images, the encoder's mirror image; the output is unbounded.

    What the output means is for the model to say: a mean for a squared error, a logit for a Bernoulli decoder.

    Args:
        latent_dim: numbers per vector.
        channels: of the images.
        size: side of the images in pixels.
        width: channels of the last feature map.

    Raises:
        ValueError: if a number is not positive, or the size cannot be halved down to 8 or less.
    """

    def __init__(
        self, latent_dim: int = 32, channels: int = 1, size: int = 28, width: int = 16
    ) -> None:
        super().__init__()
        checks.whole(1, latent_dim=latent_dim, channels=channels, size=size, width=width)
        sides = scales(size)
        self.latent_dim, self.grid = latent_dim, sides[-1]
        widths = [width * 2**i for i in range(len(sides))]
        self.hidden = nn.Linear(latent_dim, 6 * width)
        self.spread = nn.Linear(6 * width, widths[-1] * self.grid**2)
        layers: list[nn.Module] = [nn.SiLU()]
        for before, after in pairwise(widths[::-1]):
            layers += [Upsample(before, after), nn.SiLU()]
        last = nn.Conv2d(width, channels, 3, padding=1)
        self.trunk = nn.Sequential(*layers, last)
        he_initialise(self)
        last.weight.data.div_(2**0.5)

    def forward(self, z: Float[Tensor, "n latent_dim"]) -> Float[Tensor, "n c h w"]:
        """Returns one image per vector.

        Raises:
            ValueError: if the vectors have another length than the decoder was built for.
        """
        checks.codes(z, self.latent_dim, "decoder")
        maps = self.spread(F.silu(self.hidden(z)))
        return self.trunk(rearrange(maps, "n (c h w) -> n c h w", h=self.grid, w=self.grid))


def _check_residual(size: int, width: int, depth: int) -> None:
    checks.whole(1, width=width)
    checks.whole(0, checks.MOST_LAYERS, depth=depth)
    if size < 4 or size % 4:
        raise ValueError(f"size must be a multiple of 4, got {size}; pad or resize the images.")


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
        _check_residual(size, width, depth)
        layers: list[nn.Module] = []
        for before, after in ((channels, width), (width, 2 * width)):
            layers.append(Downsample(before, after))
            layers += [ResidualBlock(after) for _ in range(depth)]
            layers.append(nn.SiLU())
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width * scales(size, halvings=2)[-1] ** 2, outputs)

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
        _check_residual(size, width, depth)
        grid = scales(size, halvings=2)[-1]
        self.shape = (2 * width, grid, grid)
        self.stem = nn.Linear(inputs, 2 * width * grid**2)
        layers: list[nn.Module] = []
        for before, after in ((2 * width, width), (width, channels)):
            blocks = [ResidualBlock(before) for _ in range(depth)]
            layers += [*blocks, nn.SiLU(), *shuffle_up(before, after)]
        self.body = nn.Sequential(*layers)

    def forward(self, z: Float[Tensor, "n inputs"]) -> Float[Tensor, "n c h w"]:
        return self.body(self.stem(z).unflatten(1, self.shape))
