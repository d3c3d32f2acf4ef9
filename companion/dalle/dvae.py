"""The discrete VAE that turns an image into a grid of tokens for DALL-E.

After Ramesh et al. (2021, "Zero-shot text-to-image generation", section 2.1 and appendix A); the names `map_pixels`
and `unmap_pixels` are those of the code that they released. The relaxation of discrete codes is that of Jang et al.
(2017, "Categorical reparameterization with Gumbel-softmax") and Maddison et al. (2017, "The concrete distribution").

An encoder gives logits over K codes at each place of a grid. In training the decoder sees a softmax of the logits plus
Gumbel noise, at a temperature τ that falls, so that gradients reach the encoder; in use it sees the code of the largest
logit. The prior is uniform, and pixels have a logit-Laplace likelihood.

1. `map_pixels`, `logit_laplace_log_density`: the likelihood.
2. `kl_to_uniform`, `gumbel_softmax`: the codes.
3. `DVAE`: encoder, decoder, bound, tokens.

Deviations:
- The networks are small: patches of `factor` × `factor` pixels become channels at once, and all residual blocks work
  on the grid, where the original halves the side three times by pooling.
- ln b has a floor. Pixels that are exactly black would have any density as b → 0, and nothing else would be learnt.
- How τ and β change in the course of a training is the recipe's to say; the model counts the images that it has seen.

Shapes: `n` images, `c` channels, `h`, `w` pixels; `v` codes on a grid of `r` rows and `k` columns.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.nn.collective import processes
from companion.nn.layers import ResidualBlock, he_initialise
from companion.randomness import Source, integers, source_of, uniform

# --- 1. The likelihood ------------------------------------------------------------------------------------------------

# Pixels are moved away from 0 and 1, where the logit is infinite (appendix A.3).
EPSILON = 0.1


def map_pixels(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Maps pixels from [−1, 1] into (0, 1): first to [0, 1], then by φ(x) = (1 − 2ε)x + ε (Eq. 3)."""
    return (1 - 2 * EPSILON) * (x + 1) / 2 + EPSILON


def unmap_pixels(y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Maps back to [−1, 1]; what lies beyond [ε, 1 − ε] is clamped."""
    return (2 * (y - EPSILON) / (1 - 2 * EPSILON) - 1).clamp(-1, 1)


def logit_laplace_log_density(
    x: Float[Tensor, "*shape"], mu: Float[Tensor, "*shape"], log_b: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Returns the log-density, in nats, of a number whose logit has a Laplace distribution (Eq. 2).

    Args:
        x: numbers in (0, 1).
        mu: the median of the logit.
        log_b: the logarithm of the scale of the logit.
    """
    # Eq. 2: f(x | μ, b) = exp(−|logit x − μ| / b) / (2b x (1 − x))
    distance = (torch.logit(x) - mu).abs() * torch.exp(-log_b)
    return -(math.log(2.0) + log_b + torch.log(x * (1 - x)) + distance)


# --- 2. The codes -----------------------------------------------------------------------------------------------------


def kl_to_uniform(logits: Float[Tensor, "*shape v"]) -> Float[Tensor, "*shape"]:
    """Returns KL(q ‖ uniform) = ln K − H(q) in nats, of the distribution that logits give over their last axis."""
    log_q = logits.log_softmax(dim=-1)
    return math.log(logits.shape[-1]) + (log_q.exp() * log_q).sum(dim=-1)


def gumbel(shape: tuple[int, ...], source: Source, device: torch.device) -> Float[Tensor, "..."]:
    """Draws standard Gumbel noise, −ln(−ln u); the first dimension counts the samples."""
    u = uniform(shape, source, device)
    # Both logarithms stay finite; 2⁻²⁴ is half the step between two draws.
    return -torch.log(-torch.log(u.clamp(min=2.0**-24)))


def gumbel_softmax(
    logits: Float[Tensor, "n *shape v"], temperature: float | Float[Tensor, ""], source: Source
) -> Float[Tensor, "n *shape v"]:
    """Draws relaxed one-hot codes: softmax((logits + g) / τ) with Gumbel noise g.

    As τ → 0 they become one-hot, each code with its probability; a large τ makes them uniform.

    Args:
        logits: over their last axis.
        temperature: τ, above 0.
        source: of the noise.
    """
    g = gumbel(tuple(logits.shape), source, logits.device)
    return ((logits + g) / temperature).softmax(dim=-1)


# --- 3. The model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DVAEConfig:
    """The sizes of a `DVAE`.

    Attributes:
        channels: of the images.
        size: their side in pixels, a multiple of `factor`.
        factor: pixels on a side of the image for one place of the grid.
        width: channels of the residual blocks.
        blocks: residual blocks in the encoder, and as many in the decoder.
        codes: number of codes, K.
        least_log_scale: floor of ln b, the log-scale of the likelihood. A byte is about 0.035 wide in the logit of a
            mapped black pixel, whose logarithm is −3.4.

    Raises:
        ValueError: for a size that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    factor: int = 4
    width: int = 64
    blocks: int = 3
    codes: int = 512
    least_log_scale: float = -2.0

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, factor=self.factor)
        checks.whole(1, width=self.width)
        checks.whole(1, checks.MOST_LAYERS, blocks=self.blocks)
        checks.whole(2, codes=self.codes)
        checks.number(-20, 5, least_log_scale=self.least_log_scale)
        if self.size % self.factor:
            raise ValueError(
                f"size {self.size} is not a multiple of factor {self.factor}: patches of {self.factor}×{self.factor} "
                f"pixels do not tile the images. Choose a factor that divides {self.size}."
            )


class DVAE(nn.Module):
    """A variational autoencoder with discrete codes on a grid; a tokenizer of images.

    Args:
        config: the sizes.

    Attributes:
        images_seen: how many images its loss was computed for in training, over all processes; recipes set the
            temperature by it, so that a training that stops goes on where it was.
    """

    Config = DVAEConfig
    images_seen: Tensor

    def __init__(self, config: DVAEConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or DVAEConfig()
        pixels = c.channels * c.factor**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(c.factor),
            nn.Conv2d(pixels, c.width, 3, padding=1),
            *(ResidualBlock(c.width) for _ in range(c.blocks)),
            nn.SiLU(),
            nn.Conv2d(c.width, c.width, 1),
        )
        self.embedding = nn.Parameter(torch.randn(c.codes, c.width))
        self.decoder = nn.Sequential(
            nn.Conv2d(c.width, c.width, 3, padding=1),
            *(ResidualBlock(c.width) for _ in range(c.blocks)),
            nn.SiLU(),
            nn.Conv2d(c.width, 2 * pixels, 3, padding=1),
            nn.PixelShuffle(c.factor),
        )
        # torch's own start lets the signal fade; the residual blocks begin as the identity and stay so.
        for part in (*self.encoder, *self.decoder):
            if isinstance(part, nn.Conv2d):
                he_initialise(part)
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))

    # --- Encoder and decoder ------------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> int:
        """The number of codes."""
        return self.config.codes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the codes of an image."""
        side = self.config.size // self.config.factor
        return side, side

    @property
    def bits_per_image(self) -> float:
        """What the codes of an image cost if all are equally likely."""
        return math.prod(self.grid) * math.log2(self.vocabulary)

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n r k v"]:
        """Returns the logits of q(code | image) at every place of the grid, in float32.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        checks.images(x, self.config.channels, self.config.size, "DVAE")
        features = rearrange(self.encoder(x), "n d r k -> n r k d")
        return (features @ self.embedding.T).float()

    def decode(
        self, z: Float[Tensor, "n r k v"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """Returns μ and ln b of each pixel's likelihood for weights of the codes, relaxed or one-hot, in float32."""
        return self._likelihood(z @ self.embedding)

    def _likelihood(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.decoder(rearrange(embedded, "n r k d -> n d r k")).float()
        mu, log_b = raw.chunk(2, dim=1)
        least = self.config.least_log_scale
        return mu, least + F.softplus(log_b - least)

    # --- Training -----------------------------------------------------------------------------------------------------

    def loss(
        self,
        x: Float[Tensor, "n c h w"],
        source: Source,
        temperature: float | Float[Tensor, ""] = 1.0,
        beta: float | Float[Tensor, ""] = 1.0,
    ) -> dict[str, Float[Tensor, ""]]:
        """Returns what training minimises, and its terms.

        Args:
            x: images in [−1, 1].
            source: of the Gumbel noise.
            temperature: τ of the relaxation, above 0.
            beta: weight of the KL.

        Returns:
            "loss": the negative bound with the KL weighted by β, in nats per pixel and channel; "reconstruction"
            (−ln p(x|z)) and "kl", in nats per image.
        """
        logits = self.encode(x)
        if self.training:
            self.images_seen += len(x) * processes()
        z = gumbel_softmax(logits, temperature, source)
        mu, log_b = self.decode(z)
        reconstruction = -logit_laplace_log_density(map_pixels(x.float()), mu, log_b)
        reconstruction = reconstruction.flatten(1).sum(dim=1).mean()
        kl = kl_to_uniform(logits).flatten(1).sum(dim=1).mean()
        # Eq. 1, divided by the number of dimensions.
        total = (reconstruction + beta * kl) / x[0].numel()
        return {"loss": total, "reconstruction": reconstruction, "kl": kl}

    # --- Tokens -------------------------------------------------------------------------------------------------------

    def tokenize(self, x: Float[Tensor, "n c h w"]) -> Int64[Tensor, "n r k"]:
        """Returns the likeliest code at every place.

        Raises:
            TypeError, ValueError: as from `encode`.
        """
        return self.encode(x).argmax(dim=-1)

    def detokenize(self, tokens: Int64[Tensor, "n r k"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of codes: the median of every pixel, in [−1, 1].

        Raises:
            ValueError: if the grid has another shape, or a token is no code.
        """
        if tuple(tokens.shape[1:]) != self.grid or tokens.ndim != 3:
            raise ValueError(
                f"this DVAE has tokens on a grid of {self.grid[0]}×{self.grid[1]} for each image, got the shape "
                f"{tuple(tokens.shape)}."
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary:
            raise ValueError(
                f"tokens must be in 0…{self.vocabulary - 1}, the codes of this DVAE, got "
                f"{int(tokens.min())}…{int(tokens.max())}."
            )
        mu, _ = self._likelihood(F.embedding(tokens, self.embedding))
        return unmap_pixels(mu.sigmoid())

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns images through their tokens and back.

        Raises:
            TypeError, ValueError: as from `encode`.
        """
        return self.detokenize(self.tokenize(x))

    @torch.no_grad()
    def sample(
        self, n: int, source: Source | None = None, *, seed: int | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Draws images from the uniform prior over codes: patches that do not know of one another.

        Args:
            n: how many.
            source: of the codes.
            seed: in place of a source; image i is then a function of the seed and of i alone.

        Raises:
            ValueError: unless exactly one of source and seed is given.
        """
        draws = source_of(n, source, seed)
        return self.detokenize(
            integers(self.vocabulary, (n, *self.grid), draws, self.embedding.device)
        )
