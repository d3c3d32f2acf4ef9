"""The convolutional encoder and decoder that autoencoders, VAEs and VAE-GANs share.

Both are mirror images. The encoder halves the image until its side is at most 8 (28 → 14 → 7, 32 → 16 → 8,
64 → 32 → 16 → 8) and doubles the channels each time; two linear layers follow. The decoder goes the same way back.
There is no normalisation: batch normalisation would make an image's code depend on its neighbours in the batch, group
normalisation on far-away parts of the canvas, and networks of this depth train well without. Halving and doubling use
4×4 kernels, which cover the image evenly at stride 2 and so leave no chequerboard.
"""

from itertools import pairwise

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SMALLEST_GRID = 8


def grid_sides(size: int) -> list[int]:
    """Returns the sides of the feature maps from the image down, such as [28, 14, 7].

    Raises:
        ValueError: if the size cannot be halved down to 8 or less.
    """
    sides = [size]
    while sides[-1] > SMALLEST_GRID:
        if sides[-1] % 2:
            raise ValueError(
                f"images of {size}×{size} pixels cannot be halved down to {SMALLEST_GRID} or less without a rest; "
                "use a size such as 28, 32 or 64."
            )
        sides.append(sides[-1] // 2)
    if size < 4:
        raise ValueError(f"images must be at least 4×4 pixels, got {size}×{size}.")
    return sides


def he_initialise(module: nn.Module) -> None:
    """Draws all linear and convolutional weights with variance 2 / (inputs a number depends on); offsets are zero.

    So the signal keeps its scale from layer to layer (He et al. 2015). torch's own start lets it fade by about a half
    a layer, and a bottleneck then spends hundreds of steps on the mean image.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            inputs = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                # Of a kernel's positions only one in stride² meets any one pixel.
                kernel = layer.weight[0, 0].numel() / (layer.stride[0] * layer.stride[1])
                inputs = layer.in_channels * kernel
            nn.init.normal_(layer.weight, 0.0, (2 / inputs) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


class ConvEncoder(nn.Module):
    """Images to vectors; about 0.35 M parameters for grey 28×28 images at width 16.

    Args:
        channels: of the images.
        size: side of the images in pixels.
        width: channels of the first feature map; each halving doubles them.
        out: numbers a vector.

    Raises:
        ValueError: if a number is not positive, or the size cannot be halved down to 8 or less.
    """

    def __init__(self, channels: int = 1, size: int = 28, width: int = 16, out: int = 32) -> None:
        super().__init__()
        _check(channels=channels, size=size, width=width, out=out)
        sides = grid_sides(size)
        self.channels, self.size, self.width, self.out = channels, size, width, out
        self.grid, self.stride = sides[-1], size // sides[-1]
        widths = [width * 2**i for i in range(len(sides))]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * self.grid**2, 6 * width)
        self.head = nn.Linear(6 * width, out)
        he_initialise(self)
        # No activation follows, so nothing is lost and half the variance suffices.
        self.head.weight.data.div_(2**0.5)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out"]:
        """Returns one vector an image.

        Raises:
            ValueError: if the images have other channels or another size than the encoder was built for.
        """
        wanted = (self.channels, self.size, self.size)
        if tuple(x.shape[1:]) != wanted:
            raise ValueError(
                f"this encoder takes images of shape {wanted}, got {tuple(x.shape[1:])}; "
                "`dense` takes larger canvases."
            )
        # "n c h w -> n (c h w)": the order of the weights, whatever the order in memory.
        maps = rearrange(self.trunk(x), "n c h w -> n (c h w)")
        return self.head(functional.silu(self.hidden(maps)))

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
        hidden = functional.silu(functional.conv2d(self.trunk(x), kernel, self.hidden.bias))
        return functional.conv2d(hidden, self.head.weight[:, :, None, None], self.head.bias)


class ConvDecoder(nn.Module):
    """Vectors to images, the encoder's mirror image; the output is unbounded.

    What the output means is for the model to say: a mean for a squared error, a logit for a Bernoulli decoder.

    Args:
        latent: numbers a vector.
        channels: of the images.
        size: side of the images in pixels.
        width: channels of the last feature map.

    Raises:
        ValueError: if a number is not positive, or the size cannot be halved down to 8 or less.
    """

    def __init__(
        self, latent: int = 32, channels: int = 1, size: int = 28, width: int = 16
    ) -> None:
        super().__init__()
        _check(latent=latent, channels=channels, size=size, width=width)
        sides = grid_sides(size)
        self.latent, self.channels, self.size, self.width = latent, channels, size, width
        self.grid = sides[-1]
        widths = [width * 2**i for i in range(len(sides))]
        self.hidden = nn.Linear(latent, 6 * width)
        self.spread = nn.Linear(6 * width, widths[-1] * self.grid**2)
        layers: list[nn.Module] = [nn.SiLU()]
        for before, after in pairwise(widths[::-1]):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))
        he_initialise(self)
        self.trunk[-1].weight.data.div_(2**0.5)

    def forward(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c h w"]:
        """Returns one image a vector.

        Raises:
            ValueError: if the vectors have another length than the decoder was built for.
        """
        if z.shape[1] != self.latent:
            raise ValueError(
                f"this decoder takes vectors of {self.latent} numbers, got {z.shape[1]}."
            )
        maps = self.spread(functional.silu(self.hidden(z)))
        return self.trunk(rearrange(maps, "n (c h w) -> n c h w", h=self.grid, w=self.grid))
