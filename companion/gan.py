"""Generative adversarial networks: a generator that learns by fooling a discriminator that learns to tell.

References:
    Goodfellow et al., Generative Adversarial Nets, 2014: the game, its optimum, the non-saturating loss.
    Radford et al., Unsupervised Representation Learning with Deep Convolutional GANs, 2016 (DCGAN): the networks.
    Gulrajani et al., Improved Training of Wasserstein GANs, 2017 (WGAN-GP): the penalty between the two.
    Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018: the penalty R1.
    Miyato et al., Spectral Normalization for GANs, 2018; Miyato and Koyama, cGANs with Projection Discriminator,
        2018; the hinge loss as in Lim and Ye, Geometric GAN, 2017.
    Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017: the pairs of section 5.

1. `LOSSES`: what the two players are paid, as functions of the discriminator's logits alone.
2. `gradient_penalty`, `r1_penalty`: what is added so that the discriminator's slope stays bounded.
3. `Generator`, `Discriminator`: convolutional networks for square images, with labels if wanted.
4. `AdversarialGame`: any loss with any pair of networks; `GAN`, by its `GANConfig`: with those of section 3.
5. `ImageToImage`: the game with an image in place of the noise, and a content loss beside the discriminator.

Deviations: the discriminator has spectral normalisation or none at all, no batch normalisation, and ends with a
linear layer; the generator's batch normalisation counts the images of all processes.

Shapes: `n` images, "n c h w" in [−1, 1]; `z` is noise, "n latent_dim"; logits are "n".
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.nn.layers import Downsample, Upsample, he_initialise, scales
from companion.nn.normalisation import BatchNorm2d
from companion.nn.spectral import spectral_norm
from companion.randomness import Source, integers, normal, source_of, uniform

Labels = Int64[Tensor, " n"] | None
Logits = Float[Tensor, " n"]
Fakes = Float[Tensor, " m"]
Scalar = Float[Tensor, ""]
Loss = Literal["minimax", "non-saturating", "wasserstein", "hinge"]
Normalisation = Literal["spectral", "none"]

# --- 1. What the players are paid -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdversarialLoss:
    """Two losses of logits, where a large logit means "real".

    Attributes:
        discriminator: of the real logits and the fake logits.
        generator: of the fake logits.
    """

    discriminator: Callable[[Logits, Fakes], Scalar]
    generator: Callable[[Logits], Scalar]


def cross_entropy_discriminator(real: Logits, fake: Fakes) -> Scalar:
    """Returns −E log D(x) − E log(1 − D(G(z))) with D = sigmoid(logit) (Goodfellow et al., Eq. 1).

    log D = −softplus(−logit) and log(1 − D) = −softplus(logit), which neither overflow nor round to log 0. At the
    best possible D this is log 4 − 2·JSD, in nats.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def saturating_generator(fake: Logits) -> Scalar:
    """Returns E log(1 − D(G(z))): the same game's other side, whose gradient dies where D is sure."""
    return -F.softplus(fake).mean()


def non_saturating_generator(fake: Logits) -> Scalar:
    """Returns −E log D(G(z)) (Goodfellow et al., section 3): the same fixed point, a gradient where D is sure."""
    return F.softplus(-fake).mean()


def wasserstein_discriminator(real: Logits, fake: Fakes) -> Scalar:
    """Returns −E D(x) + E D(G(z)), which means something only for a D of bounded slope."""
    return fake.mean() - real.mean()


def hinge_discriminator(real: Logits, fake: Fakes) -> Scalar:
    """Returns E max(0, 1 − D(x)) + E max(0, 1 + D(G(z))): who is right by a margin of 1 is left alone."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def linear_generator(fake: Logits) -> Scalar:
    """Returns −E D(G(z))."""
    return -fake.mean()


LOSSES = {
    "minimax": AdversarialLoss(cross_entropy_discriminator, saturating_generator),
    "non-saturating": AdversarialLoss(cross_entropy_discriminator, non_saturating_generator),
    "wasserstein": AdversarialLoss(wasserstein_discriminator, linear_generator),
    "hinge": AdversarialLoss(hinge_discriminator, linear_generator),
}

# --- 2. Penalties on the discriminator's slope ----------------------------------------------------------------------


def squared_gradient_norm(
    critic: Callable[[Tensor], Logits], x: Float[Tensor, "n *shape"]
) -> Logits:
    """Returns ‖∇_x critic(x)‖² of each sample, over all of its numbers, so that a loss can be made of it."""
    # Second derivatives in bf16 would be little but noise.
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(dim=1)


def gradient_penalty(
    critic: Callable[[Tensor], Logits],
    real: Float[Tensor, "n *shape"],
    fake: Float[Tensor, "n *shape"],
    source: Source,
) -> Scalar:
    """Returns E(‖∇D(x̂)‖ − 1)², x̂ uniform on the lines between real and fake (WGAN-GP, Eq. 3, without its λ = 10).

    One place on the line is drawn for each pair, the same for all of its pixels.
    """
    eps = uniform((len(real),), source, real.device).reshape(-1, *[1] * (real.ndim - 1))
    between = eps * real + (1 - eps) * fake
    # The root has no slope at 0, and a critic may well be flat somewhere at the start.
    return ((squared_gradient_norm(critic, between) + 1e-12).sqrt() - 1).square().mean()


def r1_penalty(critic: Callable[[Tensor], Logits], real: Float[Tensor, "n *shape"]) -> Scalar:
    """Returns ½ E‖∇D(x)‖² at the real images (Mescheder et al., Eq. 9, without its γ)."""
    return squared_gradient_norm(critic, real).mean() / 2


# --- 3. The networks ------------------------------------------------------------------------------------------------


def _initialise(module: nn.Module) -> None:
    """Draws weights as DCGAN does: N(0, 0.02²); the gains of a normalisation N(1, 0.02²)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)


def _check_labels(labels: Tensor | None, classes: int) -> None:
    if (labels is not None) != bool(classes):
        if classes:
            raise ValueError(f"this network has {classes} classes: give each sample's label.")
        raise ValueError("this network was built without classes: leave the labels out.")


def _sides(size: int) -> list[int]:
    sides = scales(size)
    if len(sides) < 2:
        raise ValueError(f"images must be larger than 8×8 pixels, got {size}×{size}.")
    return sides


def discriminator_depth(size: int) -> int:
    """Returns how many convolutions a `Discriminator` of images of this size has.

    Raises:
        ValueError: if the size cannot be halved down to 8 or less.
    """
    return len(_sides(size))


class Generator(nn.Module):
    """Noise to images: a linear layer to the smallest grid, then transposed convolutions that double it.

    The label, if there is one, stands as a one-hot vector beside the noise.

    Args:
        latent_dim: numbers of noise per image.
        channels: of the images, 1 or 3.
        size: their side in pixels: 28, 32, 64 and others that can be halved to at most 8.
        width: channels at half the side; each halving doubles them.
        classes: number of labels; 0 for a network without.

    Raises:
        ValueError: if a number is too small, or the size cannot be halved so far.
    """

    def __init__(
        self,
        latent_dim: int = 64,
        channels: int = 1,
        size: int = 28,
        width: int = 32,
        classes: int = 0,
    ) -> None:
        super().__init__()
        checks.whole(1, latent_dim=latent_dim, channels=channels, width=width)
        checks.whole(0, classes=classes)
        sides = _sides(size)
        self.latent_dim, self.classes, self.grid = latent_dim, classes, sides[-1]
        widths = [width * 2**i for i in range(len(sides) - 1)][::-1]
        self.spread = nn.Linear(latent_dim + classes, widths[0] * self.grid**2, bias=False)
        layers: list[nn.Module] = [BatchNorm2d(widths[0]), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [Upsample(before, after, bias=False), BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, Upsample(width, channels), nn.Tanh())
        _initialise(self)

    def forward(
        self, z: Float[Tensor, "n latent_dim"], labels: Labels = None
    ) -> Float[Tensor, "n c h w"]:
        """Returns images in [−1, 1].

        Raises:
            ValueError: if the noise has another length, or labels are given to a network without or missing.
        """
        checks.codes(z, self.latent_dim, "generator")
        _check_labels(labels, self.classes)
        if labels is not None:
            z = torch.cat([z, F.one_hot(labels, self.classes).to(z)], dim=1)
        grid = rearrange(self.spread(z), "n (c h w) -> n c h w", h=self.grid, w=self.grid)
        return self.trunk(grid)


class Discriminator(nn.Module):
    """Images to one logit each, large for "real": convolutions that halve the image, leaky, then a linear layer.

    With labels it is a projection discriminator: the logit gains the product of the features with a vector of the
    class.

    Args:
        channels: of the images, 1 or 3.
        size: their side in pixels, as for `Generator`.
        width: channels at half the side; each halving doubles them.
        classes: number of labels; 0 for a network without.
        normalisation: of the weights, "spectral" or "none".

    Raises:
        ValueError: if a number is too small, the size cannot be halved so far, or there is no such normalisation.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        width: int = 32,
        classes: int = 0,
        normalisation: Normalisation = "spectral",
    ) -> None:
        super().__init__()
        checks.whole(1, channels=channels, width=width)
        checks.whole(0, classes=classes)
        checks.one_of(get_args(Normalisation), normalisation=normalisation)
        sides = _sides(size)
        self.channels, self.size, self.classes = channels, size, classes
        widths = [channels] + [width * 2**i for i in range(len(sides) - 1)]
        halvings = [Downsample(before, after) for before, after in pairwise(widths)]
        # One more convolution at the smallest grid: without it a feature sees only 10×10 pixels of a 28×28 image.
        self.convolutions = nn.ModuleList(
            [*halvings, nn.Conv2d(widths[-1], 2 * widths[-1], 3, padding=1)]
        )
        numbers = 2 * widths[-1] * sides[-1] ** 2
        self.head = nn.Linear(numbers, 1)
        self.projection = nn.Linear(classes, numbers, bias=False) if classes else None
        _initialise(self)
        if normalisation == "spectral":
            for layer in (*self.convolutions, self.head, self.projection):
                if layer is not None:
                    spectral_norm(layer)

    def features(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n ..."]]:
        """Returns the activations after each convolution, the shallowest first.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        checks.images(x, self.channels, self.size, "discriminator")
        found = []
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), 0.2)
            found.append(x)
        return found

    def judge(self, features: Float[Tensor, "n ..."], labels: Labels = None) -> Logits:
        """Returns the logits of the deepest features."""
        _check_labels(labels, self.classes)
        flat = rearrange(features, "n c h w -> n (c h w)")
        logits = self.head(flat).squeeze(1)
        if self.projection is not None and labels is not None:
            one_hot = F.one_hot(labels, self.classes).to(flat)
            logits = logits + (self.projection(one_hot) * flat).sum(dim=1)
        return logits.float()

    def forward(self, x: Float[Tensor, "n c h w"], labels: Labels = None) -> Logits:
        """Returns one logit per image."""
        return self.judge(self.features(x)[-1], labels)


# --- 4. The game ----------------------------------------------------------------------------------------------------


class AdversarialGame(nn.Module):
    """A generator and a discriminator, any pair of them, with any of the losses and penalties.

    Training takes the two losses in turns, each for its own network's parameters: an `Objective` with two phases.

    Args:
        generator: from noise "n latent_dim" (and labels, where there are classes) to samples.
        discriminator: from samples (and labels) to logits "n".
        latent_dim: numbers of noise per sample.
        classes: number of labels; 0 plays without.
        loss: one of `LOSSES`.
        gradient_penalty: weight λ of `gradient_penalty`; WGAN-GP has 10 with the loss "wasserstein".
        r1: weight γ of `r1_penalty`.

    Raises:
        ValueError: if there is no such loss, a weight is negative, or a discriminator with batch normalisation is to
            be penalised, whose slope at one sample depends on the others.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        latent_dim: int,
        *,
        classes: int = 0,
        loss: Loss = "non-saturating",
        gradient_penalty: float | int = 0.0,
        r1: float | int = 0.0,
    ) -> None:
        super().__init__()
        checks.whole(1, latent_dim=latent_dim)
        checks.whole(0, classes=classes)
        checks.one_of(LOSSES, loss=loss)
        checks.number(0, gradient_penalty=gradient_penalty, r1=r1)
        batchwise = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in discriminator.modules()
        )
        if batchwise and (gradient_penalty or r1):
            raise ValueError(
                "a penalty on each sample's slope needs a discriminator without batch normalisation; normalise "
                "its weights, its layers, or nothing."
            )
        self.generator, self.discriminator = generator, discriminator
        self.latent_dim, self.classes = latent_dim, classes
        self.loss, self.gradient_penalty, self.r1 = loss, gradient_penalty, r1

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _labels(self, labels: Labels) -> tuple[Tensor, ...]:
        """The labels as a further argument, for a game that has classes."""
        if not self.classes:
            return ()
        if labels is None:
            raise ValueError(f"this game has {self.classes} classes: give the samples' labels.")
        return (labels,)

    def generate(self, n: int, source: Source, labels: Labels = None) -> Float[Tensor, "n *shape"]:
        """Draws samples as the generator makes them now, with their gradient."""
        return self.generator(
            normal((n, self.latent_dim), source, self._device()), *self._labels(labels)
        )

    def discriminator_loss(
        self, real: Float[Tensor, "n *shape"], source: Source, labels: Labels = None
    ) -> dict[str, Scalar]:
        """Returns the discriminator's loss on real samples and as many fakes, which carry no gradient.

        Args:
            real: a batch of data; its labels serve the fakes as well.
            source: of the noise, and of the places of the penalty.
            labels: of the real samples, where there are classes.

        Returns:
            "loss"; "real" and "fake", the means of the real and the fake logits; "penalty" and "r1", unweighted, where
            there are such.
        """
        with torch.no_grad():
            fake = self.generate(len(real), source, labels).to(real.dtype)
        given = self._labels(labels)
        real_logits = self.discriminator(real, *given)
        fake_logits = self.discriminator(fake, *given)
        loss = LOSSES[self.loss].discriminator(real_logits, fake_logits)
        values = {"real": real_logits.mean(), "fake": fake_logits.mean()}

        def critic(x: Tensor) -> Tensor:
            return self.discriminator(x, *given)

        if self.gradient_penalty:
            values["penalty"] = gradient_penalty(critic, real, fake, source)
            loss = loss + self.gradient_penalty * values["penalty"]
        if self.r1:
            values["r1"] = r1_penalty(critic, real)
            loss = loss + self.r1 * values["r1"]
        return {"loss": loss} | values

    def generator_loss(self, n: int, source: Source, labels: Labels = None) -> dict[str, Scalar]:
        """Returns the generator's loss on n fakes."""
        fake = self.generate(n, source, labels)
        logits = self.discriminator(fake, *self._labels(labels))
        return {"loss": LOSSES[self.loss].generator(logits)}

    @torch.no_grad()
    def sample(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Labels = None,
    ) -> Float[Tensor, "n *shape"]:
        """Draws samples.

        Args:
            n: how many.
            source: of the noise, and of the labels where they are drawn.
            seed: in place of a source; sample i is then a function of the seed and of i alone.
            labels: one per sample, for a game with classes; left out, they are drawn, all classes alike.

        Raises:
            ValueError: unless exactly one of source and seed is given.
        """
        source = source_of(n, source, seed)
        if labels is None and self.classes:
            labels = integers(self.classes, (n,), source, self._device())
        return self.generate(n, source, labels)


@dataclass(frozen=True, kw_only=True)
class GANConfig:
    """The settings of a `GAN`.

    Attributes:
        channels: of the images, 1 or 3.
        size: their side in pixels: 28, 32, 64 and others that can be halved to at most 8.
        latent_dim: numbers of noise per image.
        generator_width: channels of the generator at half the side of the image; each halving doubles them.
        discriminator_width: channels of the discriminator at half the side.
        classes: number of labels; 0 plays without.
        normalisation: of the discriminator's weights, "spectral" or "none".
        loss: one of `LOSSES`.
        gradient_penalty: weight of the penalty between real and fake images (WGAN-GP has 10).
        r1: weight of the penalty at the real images.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    latent_dim: int = 64
    generator_width: int = 64
    discriminator_width: int = 32
    classes: int = 0
    normalisation: Normalisation = "spectral"
    loss: Loss = "hinge"
    gradient_penalty: float | int = 0.0
    r1: float | int = 0.0

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, latent_dim=self.latent_dim)
        checks.whole(1, generator_width=self.generator_width)
        checks.whole(1, discriminator_width=self.discriminator_width)
        checks.whole(0, classes=self.classes)
        checks.one_of(get_args(Normalisation), normalisation=self.normalisation)
        checks.one_of(LOSSES, loss=self.loss)
        checks.number(0, gradient_penalty=self.gradient_penalty, r1=self.r1)
        _sides(self.size)


class GAN(AdversarialGame):
    """The game with the convolutional networks of section 3.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "gan".
    """

    Config = GANConfig

    def __init__(self, config: GANConfig | None = None) -> None:
        c = config or GANConfig()
        super().__init__(
            Generator(c.latent_dim, c.channels, c.size, c.generator_width, c.classes),
            Discriminator(c.channels, c.size, c.discriminator_width, c.classes, c.normalisation),
            c.latent_dim,
            classes=c.classes,
            loss=c.loss,
            gradient_penalty=c.gradient_penalty,
            r1=c.r1,
        )
        self.config = c


# --- 5. From image to image -----------------------------------------------------------------------------------------


def bolder(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Returns images whose bright strokes are a pixel wider on each side: the largest of 3×3 pixels."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def coarser(x: Float[Tensor, "n c h w"], factor: int = 4) -> Float[Tensor, "n c h w"]:
    """Returns images of the same size whose pixels are the means of factor × factor blocks."""
    return F.interpolate(F.avg_pool2d(x, factor), scale_factor=factor, mode="nearest")


def with_a_hole(
    x: Float[Tensor, "n c h w"], source: Source, side: int = 12
) -> Float[Tensor, "n c h w"]:
    """Returns images with a grey square (value 0) at a random place of each."""
    n, _, height, width = x.shape
    room = torch.tensor([height - side + 1, width - side + 1], device=x.device)
    corner = (uniform((n, 2), source, x.device) * room).long()
    rows = torch.arange(height, device=x.device) - corner[:, :1]
    columns = torch.arange(width, device=x.device) - corner[:, 1:]
    inside = ((rows >= 0) & (rows < side))[:, None, :, None]
    inside = inside & ((columns >= 0) & (columns < side))[:, None, None, :]
    return torch.where(inside, 0.0, x)


def noisier(
    x: Float[Tensor, "n c h w"], source: Source, sigma: float = 0.8
) -> Float[Tensor, "n c h w"]:
    """Returns images with Gaussian noise of standard deviation sigma added to every pixel."""
    return x + sigma * normal(tuple(x.shape), source, x.device)


# From a clean image to (what is given, what is wanted).
Task = Callable[[Tensor, Source], tuple[Tensor, Tensor]]
TASKS: dict[str, Task] = {
    "style": lambda x, source: (x, bolder(x)),
    "super-resolution": lambda x, source: (coarser(x), x),
    "completion": lambda x, source: (with_a_hole(x, source), x),
    "denoising": lambda x, source: (noisier(x, source), x),
}


class UNetGenerator(nn.Module):
    """An image to an image of the same size: down to a quarter of the side and back, with bridges at each scale.

    Args:
        channels: of the images.
        width: channels at the full side; each halving doubles them.
    """

    def __init__(self, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down_1 = Downsample(width, 2 * width)
        self.down_2 = Downsample(2 * width, 4 * width)
        self.middle = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
        self.up_2 = Upsample(4 * width, 2 * width)
        self.up_1 = Upsample(4 * width, width)
        self.leave = nn.Conv2d(2 * width, channels, 3, padding=1)
        he_initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns images in [−1, 1]."""
        full = F.silu(self.enter(x))
        half = F.silu(self.down_1(full))
        quarter = F.silu(self.middle(F.silu(self.down_2(half))))
        half = torch.cat([F.silu(self.up_2(quarter)), half], dim=1)
        full = torch.cat([F.silu(self.up_1(half)), full], dim=1)
        # The network adds to its input, so that training begins at the given image and not at a constant grey, from
        # where a tanh has little slope to come back.
        return torch.tanh(x + self.leave(full))


@dataclass(frozen=True, kw_only=True)
class ImageToImageConfig:
    """The settings of an `ImageToImage`.

    Attributes:
        channels: of the images.
        size: their side in pixels.
        generator_width: channels of the generator at the full side of the image.
        discriminator_width: channels of the discriminator at half the side.
        content: weight of the mean squared error per pixel.
        adversarial: weight of the discriminator in the generator's loss; at 0 it is not asked.
        loss: one of `LOSSES`.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    generator_width: int = 16
    discriminator_width: int = 16
    content: float | int = 1.0
    adversarial: float | int = 0.01
    loss: Loss = "non-saturating"

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size)
        checks.whole(1, generator_width=self.generator_width)
        checks.whole(1, discriminator_width=self.discriminator_width)
        checks.number(0, content=self.content, adversarial=self.adversarial)
        if self.content + self.adversarial == 0:
            raise ValueError(
                "content and adversarial are both 0, so there is no loss: give one of them a weight."
            )
        checks.one_of(LOSSES, loss=self.loss)
        _sides(self.size)
        if self.size % 4:
            raise ValueError(
                f"size must be a multiple of 4, got {self.size}; pad or resize the images."
            )


class ImageToImage(nn.Module):
    """A network from one image to another, trained by a content loss, a discriminator of pairs, or both.

    The discriminator sees (given, answer) side by side as channels, so that an answer must fit its question and not
    only look real. There is no noise: one question has one answer.

    Args:
        config: the settings.
    """

    Config = ImageToImageConfig

    def __init__(self, config: ImageToImageConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or ImageToImageConfig()
        self.generator = UNetGenerator(c.channels, c.generator_width)
        self.discriminator = Discriminator(2 * c.channels, c.size, c.discriminator_width)

    def forward(self, given: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns the answers, in [−1, 1].

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        checks.images(given, self.config.channels, self.config.size, "image-to-image network")
        return self.generator(given)

    def discriminator_loss(
        self, given: Float[Tensor, "n c h w"], wanted: Float[Tensor, "n c h w"]
    ) -> dict[str, Scalar]:
        """Returns the discriminator's loss on (given, wanted) against (given, answer)."""
        with torch.no_grad():
            answer = self(given).to(given.dtype)
        real = self.discriminator(torch.cat([given, wanted], dim=1))
        fake = self.discriminator(torch.cat([given, answer], dim=1))
        loss = LOSSES[self.config.loss].discriminator(real, fake)
        return {"loss": loss, "real": real.mean(), "fake": fake.mean()}

    def generator_loss(
        self, given: Float[Tensor, "n c h w"], wanted: Float[Tensor, "n c h w"]
    ) -> dict[str, Scalar]:
        """Returns the weighted sum, and the content term alone."""
        answer = self(given).float()
        content = F.mse_loss(answer, wanted)
        loss = self.config.content * content
        if self.config.adversarial:
            logits = self.discriminator(torch.cat([given, answer], dim=1))
            loss = loss + self.config.adversarial * LOSSES[self.config.loss].generator(logits)
        return {"loss": loss, "content": content}
