"""Denoising autoencoders: corrupt, reconstruct the clean image, and read the score off the residual.

References:
    Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders, 2008: the model, masking.
    Vincent et al., Stacked Denoising Autoencoders, 2010: Gaussian and salt-and-pepper corruption.
    Vincent, A Connection Between Score Matching and Denoising Autoencoders, 2011: denoising score matching.
    Alain & Bengio, What Regularized Auto-Encoders Learn from the Data-Generating Distribution, 2014:
        (r(x) − x)/σ² → ∇ log p(x) as σ → 0.
    Robbins, 1956, and Miyasawa, 1961 (Tweedie's formula): E[x | x̃] = x̃ + σ² ∇ log p_σ(x̃), for every σ.
    Kadkhodaie & Simoncelli, Stochastic Solutions for Linear Inverse Problems Using the Prior Implicit in a
        Denoiser, 2021: one denoiser for all noise levels that is not told the level, as a sampler.

Which score: for Gaussian noise, (r(x̃) − x̃)/σ² of the optimal r is *exactly* the score of the noised density
p_σ = p * N(0, σ²I), and the score of p itself only in the limit σ → 0, where learning it becomes hopeless.

Deviations: no greedy training layer by layer, no tied weights; encoder and decoder are those of the convolutional
autoencoder, so that the corruption is the only difference between the two.

Shapes: `n` samples; images are "n c h w" in [−1, 1]; points are "n d".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion import checks
from companion.errors import unknown_name
from companion.nn.convolutional import ConvDecoder, ConvEncoder
from companion.nn.layers import perceptron, scales
from companion.randomness import Source, normal, source_of, uniform

Amount = float | int | Float[Tensor, " n"]


# --- corruptions -----------------------------------------------------------------------------------------


def _column(amount: Amount, x: Tensor) -> Tensor:
    """Shapes one number, or one for each sample, so that it multiplies samples."""
    amount = torch.as_tensor(amount, dtype=x.dtype, device=x.device)
    return amount.reshape(-1, *[1] * (x.ndim - 1))


def _chosen(x: Float[Tensor, "n *d"], share: Amount, source: Source) -> Bool[Tensor, "n *m"]:
    """Chooses the share of each sample's pixels (of all channels together) or coordinates, the exact number."""
    if not (isinstance(share, Tensor) or 0 <= share <= 1):
        raise ValueError(f"share is {share}: choose a share of the pixels in [0, 1]")
    shape = (len(x), 1, *x.shape[2:]) if x.ndim == 4 else tuple(x.shape)
    drawn = uniform(shape, source, x.device).flatten(1)
    count = (_column(share, drawn) * drawn.shape[1]).round()
    # The places of the smallest uniform numbers are a random choice without replacement.
    first = torch.arange(drawn.shape[1], device=x.device) < count
    chosen = torch.zeros_like(drawn, dtype=torch.bool)
    return chosen.scatter_(1, drawn.argsort(dim=1), first.expand_as(chosen)).reshape(shape)


def gaussian_noise(
    x: Float[Tensor, "n *d"], sigma: Amount, source: Source
) -> Float[Tensor, "n *d"]:
    """Adds independent Gaussian noise of standard deviation sigma, one for all or one for each sample."""
    return x + _column(sigma, x) * normal(tuple(x.shape), source, x.device).to(x.dtype)


def masking_noise(
    x: Float[Tensor, "n *d"], share: Amount, source: Source, value: float | int = -1.0
) -> Float[Tensor, "n *d"]:
    """Sets a share of the pixels, the same number in each image, to a value (by default the black of [−1, 1]).

    Vincent et al. (2008), section 2.3; an image of several channels loses whole pixels.

    Raises:
        ValueError: if the share does not lie in [0, 1].
    """
    return torch.where(_chosen(x, share, source), x.new_tensor(float(value)), x)


def salt_and_pepper_noise(
    x: Float[Tensor, "n *d"],
    share: Amount,
    source: Source,
    low: float | int = -1.0,
    high: float | int = 1.0,
) -> Float[Tensor, "n *d"]:
    """Sets a share of the pixels, the same number in each image, to the lowest or highest value by a fair coin.

    Raises:
        ValueError: if the share does not lie in [0, 1].
    """
    chosen = _chosen(x, share, source)
    heads = uniform(tuple(chosen.shape), source, x.device) < 0.5
    grain = torch.where(heads, x.new_tensor(float(low)), x.new_tensor(float(high)))
    return torch.where(chosen, grain, x)


CORRUPTIONS: dict[str, Callable[[Tensor, Amount, Source], Tensor]] = {
    "gaussian": gaussian_noise,
    "masking": masking_noise,
    "salt-and-pepper": salt_and_pepper_noise,
}


def corrupt(
    x: Float[Tensor, "n *d"], kind: str, amount: Amount, source: Source
) -> Float[Tensor, "n *d"]:
    """Corrupts by name: "gaussian" (amount: standard deviation), "masking" or "salt-and-pepper" (share).

    Raises:
        ValueError: for an unknown name, or a share outside [0, 1].
    """
    if kind not in CORRUPTIONS:
        raise unknown_name("corruption", kind, CORRUPTIONS)
    return CORRUPTIONS[kind](x, amount, source)


# --- from the denoiser to the score to samples --------------------------------------------------------------


def residual_score(
    denoised: Float[Tensor, "n *d"], x: Float[Tensor, "n *d"], sigma: Amount
) -> Float[Tensor, "n *d"]:
    """Returns (r(x) − x)/σ², the score of the noised density p_σ at x where r is the optimal denoiser."""
    return (denoised - x) / _column(sigma, x) ** 2


@torch.no_grad()
def langevin(
    score: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n *d"],
    *,
    step: float | int,
    steps: int,
    source: Source,
    callback: Callable[[int, Tensor], object] | None = None,
) -> Float[Tensor, "n *d"]:
    """Runs the unadjusted Langevin chain x ← x + η s(x) + √(2η) z, z normal, for all samples at once.

    Its stationary law tends to the density whose score is s as η → 0. At a finite η it is biased: on a normal
    law of variance v the chain's variance becomes v/(1 − η/(2v)), and from η = 2v on it diverges.

    Args:
        score: maps a batch of states to the gradients of the log-density there.
        x: the first states.
        step: η, in units of x².
        steps: how many.
        source: of the normal numbers.
        callback: receives the number of steps done and the states, after each.

    Raises:
        ValueError: if the step is not positive or the number of steps is negative.
    """
    if not step > 0 or steps < 0:
        raise ValueError(
            f"step is {step} and steps is {steps}: a chain needs a positive step, and steps of 0 or more"
        )
    for k in range(steps):
        z = normal(tuple(x.shape), source, x.device).to(x.dtype)
        x = x + step * score(x) + math.sqrt(2 * step) * z
        if callback:
            callback(k + 1, x)
    return x


def noise_levels(highest: float | int, lowest: float | int, count: int) -> Float[Tensor, " count"]:
    """Returns noise levels from the highest to the lowest, each the same fraction of the one before."""
    return torch.logspace(math.log10(highest), math.log10(lowest), count)


@torch.no_grad()
def sample_through_levels(
    denoise: Callable[[Tensor, float], Tensor],
    x: Float[Tensor, "n *d"],
    sigmas: Float[Tensor, " m"],
    source: Source,
    callback: Callable[[int, Tensor, Tensor], object] | None = None,
) -> Float[Tensor, "n *d"]:
    """Walks from much noise to none, denoising a little at each level.

    If x has noise σ and the clean image were r, then the same image at a lower noise σ' would be normal with mean
    r + (σ'/σ)² (x − r) and variance σ'² (1 − (σ'/σ)²). Each step draws from that law, with the denoised image in
    the place of r; the last returns the denoised image. This is the ancestral sampler of diffusion models
    in their variance-exploding form.

    Args:
        denoise: from noisy samples and their noise level to denoised ones.
        x: the first states, with noise of level sigmas[0].
        sigmas: falling noise levels, all positive.
        source: of the normal numbers.
        callback: receives the number of levels done, the states and the denoised samples, after each.
    """
    values = sigmas.tolist()
    for k, sigma in enumerate(values):
        r = denoise(x, sigma)
        if k + 1 == len(values):
            x = r
        else:
            ratio = (values[k + 1] / sigma) ** 2
            z = normal(tuple(x.shape), source, x.device).to(x.dtype)
            x = r + ratio * (x - r) + values[k + 1] * math.sqrt(1 - ratio) * z
        if callback:
            callback(k + 1, x, r)
    return x


# --- networks ------------------------------------------------------------------------------------------------


def _levels(n: int, low: float, high: float, source: Source, like: Tensor) -> Tensor:
    """Draws one amount for each sample, uniform on a logarithmic scale; all equal if there is no range."""
    if low == high:
        return like.new_full((n,), low)
    u = uniform((n,), source, like.device).to(like.dtype)
    return low * (high / low) ** u


class MLPDenoiser(nn.Module):
    """A denoiser of points that is told the noise level: r(x, σ) = x + σ f(x/√(1 + σ²), log σ), f a perceptron.

    Its score is f/σ. The loss is the squared error divided by σ², so that no level drowns the others; where
    there is only one level this is the plain squared error in another unit.

    Args:
        dimensions: numbers per point.
        width: units of a hidden layer.
        depth: hidden layers.
        sigma_min: lowest noise level in training.
        sigma_max: highest noise level in training; the same as the lowest for an ordinary denoising autoencoder.

    Raises:
        ValueError: unless 0 < sigma_min <= sigma_max.
    """

    def __init__(
        self,
        dimensions: int = 2,
        width: int = 128,
        depth: int = 3,
        sigma_min: float | int = 0.1,
        sigma_max: float | int = 0.1,
    ) -> None:
        super().__init__()
        checks.whole(1, dimensions=dimensions, width=width)
        checks.whole(0, checks.MOST_LAYERS, depth=depth)
        if not 0 < sigma_min <= sigma_max:
            raise ValueError(
                f"sigma_min is {sigma_min} and sigma_max {sigma_max}: noise levels must be positive and rising"
            )
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.f = perceptron(dimensions + 1, *[width] * depth, dimensions, he=False)

    def forward(self, x: Float[Tensor, "n d"], sigma: Amount) -> Float[Tensor, "n d"]:
        """Returns the estimate of the clean points.

        Args:
            x: noisy points.
            sigma: their noise level, one for all or one for each.
        """
        sigma = _column(sigma, x)
        scaled = torch.cat([x / (1 + sigma**2).sqrt(), sigma.log().expand(len(x), 1)], dim=1)
        return x + sigma * self.f(scaled)

    def score(self, x: Float[Tensor, "n d"], sigma: Amount) -> Float[Tensor, "n d"]:
        """Returns (r(x) − x)/σ², the estimate of ∇ log p_σ(x), the *noised* density's score."""
        return residual_score(self(x, sigma), x, sigma)

    def loss(self, x: Float[Tensor, "n d"], source: Source) -> dict[str, Float[Tensor, ""]]:
        """Returns the mean of |r(x̃, σ) − x|²/(σ² d), for noise that is drawn here."""
        sigma = _levels(len(x), self.sigma_min, self.sigma_max, source, x)
        noisy = gaussian_noise(x, sigma, source)
        error = (self(noisy, sigma).float() - x) / _column(sigma, x)
        return {"loss": error.square().mean()}


@dataclass(frozen=True, kw_only=True)
class DenoisingAutoencoderConfig:
    """The settings of a `DenoisingAutoencoder`.

    Attributes:
        channels: of the images.
        size: their side in pixels, such as 28, 32 or 64.
        width: channels of the first feature map.
        latent_dim: numbers in the bottleneck.
        corruption: "gaussian", "masking" or "salt-and-pepper".
        amount: standard deviation of the Gaussian noise, or share of the pixels; with a range, the lowest.
        amount_max: the highest; each training image draws its amount between the two, uniform on a logarithmic scale.
            None trains at one amount alone.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    width: int = 16
    latent_dim: int = 64
    corruption: Literal["gaussian", "masking", "salt-and-pepper"] = "gaussian"
    amount: float | int = 0.2
    amount_max: float | int | None = 5.0

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, width=self.width)
        checks.whole(1, latent_dim=self.latent_dim)
        scales(self.size)
        checks.one_of(CORRUPTIONS, corruption=self.corruption)
        checks.number(0, amount=self.amount)
        if self.amount_max is not None:
            checks.number(self.amount, amount_max=self.amount_max)
        low, high = self.amounts
        if high > low == 0:
            raise ValueError(
                f"amount is 0 and amount_max {high:g}: a range on a logarithmic scale starts above 0, such as at 0.01."
            )
        if self.corruption != "gaussian" and high > 1:
            raise ValueError(
                f"{self.corruption} noise of the amount {high:g}: it is a share of the pixels, at most 1; set "
                "amount_max to 1 or less, or leave it out."
            )

    @property
    def amounts(self) -> tuple[float, float]:
        """The lowest and the highest amount; equal where there is only one."""
        return float(self.amount), float(
            self.amount if self.amount_max is None else self.amount_max
        )


class DenoisingAutoencoder(nn.Module):
    """A convolutional autoencoder of images that is trained on corrupted inputs and clean targets.

    With a range of amounts the network learns all of them at once, without being told which one it sees: an image of
    hundreds of pixels shows how noisy it is. Such a network can be sampled from. With the amount 0 it is the plain
    autoencoder.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "denoising-autoencoder".
    """

    Config = DenoisingAutoencoderConfig

    def __init__(self, config: DenoisingAutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or DenoisingAutoencoderConfig()
        self.encoder = ConvEncoder(c.channels, c.size, c.width, c.latent_dim)
        self.decoder = ConvDecoder(c.latent_dim, c.channels, c.size, c.width)

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent_dim"]:
        """Returns the codes of images, clean or not.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        return self.encoder(x)

    def decode(self, z: Float[Tensor, "n latent_dim"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of codes; means, which may leave [−1, 1] a little."""
        return self.decoder(z)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns the estimate of the clean images, r(x̃) in the papers."""
        return self.decode(self.encode(x))

    def corrupt(self, x: Float[Tensor, "n c h w"], source: Source) -> Float[Tensor, "n c h w"]:
        """Corrupts images as in training."""
        amount = _levels(len(x), *self.config.amounts, source, x)
        return corrupt(x, self.config.corruption, amount, source)

    def loss(self, x: Float[Tensor, "n c h w"], source: Source) -> dict[str, Float[Tensor, ""]]:
        """Returns the mean squared error per pixel against the *clean* images.

        Args:
            x: clean images in [−1, 1].
            source: of the corruption.
        """
        error = self(self.corrupt(x, source)).float() - x
        return {"loss": error.square().mean()}

    def score(self, x: Float[Tensor, "n c h w"], sigma: Amount) -> Float[Tensor, "n c h w"]:
        """Returns (r(x) − x)/σ², the estimate of ∇ log p_σ(x), the *noised* density's score.

        Raises:
            ValueError: if the corruption is not Gaussian; Tweedie's formula holds for no other here.
        """
        if self.config.corruption != "gaussian":
            raise ValueError(
                f"a denoiser of {self.config.corruption} noise gives no score: train one with Gaussian noise"
            )
        return residual_score(self(x), x, sigma)

    @property
    def can_sample(self) -> bool:
        """Whether the training's noise was Gaussian and of a range of levels, for `sample` to walk through."""
        low, high = self.config.amounts
        return self.config.corruption == "gaussian" and high > low

    @torch.no_grad()
    def sample(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        levels: int = 100,
        background: float | int = -1.0,
    ) -> Float[Tensor, "n c h w"]:
        """Draws images by walking from the highest noise level of the training to the lowest.

        Args:
            n: how many.
            source: of the first noise and of the noise between the levels.
            seed: in place of a source; image i is then a function of the seed and of i alone.
            levels: how many noise levels the walk has.
            background: the walk starts from this value plus noise. At a finite highest level the noise does not
                drown the images' mean, so that the right start is near it; for digits that is the empty page.

        Returns:
            Images cut to [−1, 1].

        Raises:
            ValueError: if the network was not trained with Gaussian noise of a range of levels, or unless exactly one
                of source and seed is given.
        """
        checks.whole(1, levels=levels)
        low, high = self.config.amounts
        if not self.can_sample:
            kind = self.config.corruption
            amount = f"amount {low:g} alone" if low == high else f"amounts {low:g} to {high:g}"
            raise ValueError(
                f"this network was trained on {kind} noise of the {amount}: sampling needs Gaussian noise and a range, "
                "from amount up to amount_max"
            )
        source = source_of(n, source, seed)
        device = next(self.parameters()).device
        sigmas = noise_levels(high, low, levels)
        shape = (n, self.config.channels, self.config.size, self.config.size)
        x = background + high * normal(shape, source, device)
        return sample_through_levels(lambda x, _: self(x), x, sigmas, source).clamp(-1, 1)
