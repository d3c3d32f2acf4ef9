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
4. `AdversarialGame`: any loss with any pair of networks; `GAN`: with those of section 3.
5. `ImageToImage`: the game with an image in place of the noise, and a content loss beside the judge.

Deviations: the discriminator has spectral normalisation or none at all, no batch normalisation, and ends with a
linear layer; the generator's batch normalisation counts the images of all processes.

Shapes: `n` images, "n c h w" in [−1, 1]; `z` is noise, "n latent"; logits are "n".
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion.errors import unknown_name
from companion.nn.convolutional import grid_sides, he_initialise
from companion.nn.normalisation import BatchNorm2d
from companion.nn.spectral import spectral_norm
from companion.randomness import Source, integers, normal, uniform

Labels = Int64[Tensor, " n"] | None
Logits = Float[Tensor, " n"]
Fakes = Float[Tensor, " m"]
Scalar = Float[Tensor, ""]

# --- 1. What the players are paid -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdversarialLoss:
    """Two losses of logits, where a large logit means "real".

    Attributes:
        discriminator: of the logits of real images and of fakes.
        generator: of the logits of fakes.
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


def slopes(critic: Callable[[Tensor], Logits], x: Float[Tensor, "n *shape"]) -> Logits:
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
    return ((slopes(critic, between) + 1e-12).sqrt() - 1).square().mean()


def r1_penalty(critic: Callable[[Tensor], Logits], real: Float[Tensor, "n *shape"]) -> Scalar:
    """Returns ½ E‖∇D(x)‖² at the real images (Mescheder et al., Eq. 9, without its γ)."""
    return slopes(critic, real).mean() / 2


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
        wants = f"takes labels of {classes} classes" if classes else "was built without classes"
        got = "none" if labels is None else "some"
        raise ValueError(f"this network {wants}, got {got}.")


class Generator(nn.Module):
    """Noise to images: a linear layer to the smallest grid, then transposed convolutions that double it.

    The label, if there is one, stands as a one-hot vector beside the noise.

    Args:
        latent: numbers of noise an image.
        channels: of the images, 1 or 3.
        size: their side in pixels: 28, 32, 64 and others that can be halved to at most 8.
        width: channels at half the side; each halving doubles them.
        classes: number of labels; 0 for a network without.

    Raises:
        ValueError: if a number is too small, or the size cannot be halved so far.
    """

    def __init__(
        self,
        latent: int = 64,
        channels: int = 1,
        size: int = 28,
        width: int = 32,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if min(latent, channels, width) < 1 or classes < 0:
            raise ValueError(
                f"latent, channels and width must be at least 1 and classes 0, got {latent}, {channels}, {width} "
                f"and {classes}."
            )
        sides = grid_sides(size)
        if len(sides) < 2:
            raise ValueError(f"images must be larger than 8×8 pixels, got {size}×{size}.")
        self.latent, self.channels, self.size = latent, channels, size
        self.width, self.classes, self.grid = width, classes, sides[-1]
        widths = [width * 2**i for i in range(len(sides) - 1)][::-1]
        self.spread = nn.Linear(latent + classes, widths[0] * self.grid**2, bias=False)
        layers: list[nn.Module] = [BatchNorm2d(widths[0]), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.trunk = nn.Sequential(
            *layers, nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh()
        )
        _initialise(self)

    def forward(
        self, z: Float[Tensor, "n latent"], labels: Labels = None
    ) -> Float[Tensor, "n c h w"]:
        """Returns images in [−1, 1].

        Raises:
            ValueError: if the noise has another length, or labels are given to a network without or missing.
        """
        if z.shape[1] != self.latent:
            raise ValueError(
                f"this generator takes {self.latent} numbers of noise, got {z.shape[1]}."
            )
        _check_labels(labels, self.classes)
        if labels is not None:
            z = torch.cat([z, F.one_hot(labels, self.classes).to(z)], dim=1)
        grid = rearrange(self.spread(z), "n (c h w) -> n c h w", h=self.grid, w=self.grid)
        return self.trunk(grid)


class Discriminator(nn.Module):
    """Images to one logit each: convolutions that halve the image, leaky, then a linear layer.

    With labels it is a projection discriminator: the logit gains the product of the features with a vector of the
    class.

    Args:
        channels: of the images, 1 or 3.
        size: their side in pixels, as for `Generator`.
        width: channels at half the side; each halving doubles them.
        classes: number of labels; 0 for a network without.
        normalise: "spectral" or "none".

    Raises:
        ValueError: if a number is too small, the size cannot be halved so far, or there is no such normalisation.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        width: int = 32,
        classes: int = 0,
        normalise: str = "spectral",
    ) -> None:
        super().__init__()
        if min(channels, width) < 1 or classes < 0:
            raise ValueError(
                f"channels and width must be at least 1 and classes 0, got {channels}, {width} and {classes}."
            )
        if normalise not in ("spectral", "none"):
            raise unknown_name("normalise", normalise, ["spectral", "none"])
        sides = grid_sides(size)
        if len(sides) < 2:
            raise ValueError(f"images must be larger than 8×8 pixels, got {size}×{size}.")
        self.channels, self.size, self.width = channels, size, width
        self.classes, self.normalise = classes, normalise
        widths = [channels] + [width * 2**i for i in range(len(sides) - 1)]
        halvings = [
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        ]
        # One more convolution at the smallest grid: without it a feature sees only 10×10 pixels of a 28×28 image.
        self.convolutions = nn.ModuleList(
            [*halvings, nn.Conv2d(widths[-1], 2 * widths[-1], 3, padding=1)]
        )
        numbers = 2 * widths[-1] * sides[-1] ** 2
        self.head = nn.Linear(numbers, 1)
        self.projection = nn.Linear(classes, numbers, bias=False) if classes else None
        _initialise(self)
        if normalise == "spectral":
            for layer in (*self.convolutions, self.head, self.projection):
                if layer is not None:
                    spectral_norm(layer)

    def features(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n ..."]]:
        """Returns the activations after each convolution, the shallowest first.

        Raises:
            ValueError: if the images have another shape than the network was built for.
        """
        wanted = (self.channels, self.size, self.size)
        if tuple(x.shape[1:]) != wanted:
            raise ValueError(
                f"this discriminator takes images of shape {wanted}, got {tuple(x.shape[1:])}."
            )
        found = []
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), 0.2)
            found.append(x)
        return found

    def judge(self, features: Float[Tensor, "n ..."], labels: Labels = None) -> Logits:
        """Returns the logits of the deepest features; large means "real"."""
        _check_labels(labels, self.classes)
        flat = rearrange(features, "n c h w -> n (c h w)")
        logits = self.head(flat).squeeze(1)
        if self.projection is not None and labels is not None:
            one_hot = F.one_hot(labels, self.classes).to(flat)
            logits = logits + (self.projection(one_hot) * flat).sum(dim=1)
        return logits.float()

    def forward(self, x: Float[Tensor, "n c h w"], labels: Labels = None) -> Logits:
        """Returns one logit an image."""
        return self.judge(self.features(x)[-1], labels)


# --- 4. The game ----------------------------------------------------------------------------------------------------


class AdversarialGame(nn.Module):
    """A generator and a discriminator, any pair of them, with any of the losses and penalties.

    Training takes the two losses in turns, each for its own network's parameters: an `Objective` with two phases.

    Args:
        generator: from noise "n latent" (and labels, where there are classes) to samples.
        discriminator: from samples (and labels) to logits "n".
        latent: numbers of noise a sample.
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
        latent: int,
        *,
        classes: int = 0,
        loss: str = "non-saturating",
        gradient_penalty: float | int = 0.0,
        r1: float | int = 0.0,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise unknown_name("loss", loss, LOSSES)
        if min(gradient_penalty, r1) < 0:
            raise ValueError(
                f"weights of penalties must not be negative, got gradient_penalty={gradient_penalty}, r1={r1}."
            )
        batchwise = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in discriminator.modules()
        )
        if batchwise and (gradient_penalty or r1):
            raise ValueError(
                "a penalty on each sample's slope needs a discriminator without batch normalisation; normalise "
                "its weights, its layers, or nothing."
            )
        self.generator, self.discriminator = generator, discriminator
        self.latent, self.classes = latent, classes
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
            normal((n, self.latent), source, self._device()), *self._labels(labels)
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
            "loss"; "real" and "fake", the mean logits; "penalty", unweighted, where there is one.
        """
        with torch.no_grad():
            fake = self.generate(len(real), source, labels).to(real.dtype)
        given = self._labels(labels)
        on_real, on_fake = self.discriminator(real, *given), self.discriminator(fake, *given)
        loss = LOSSES[self.loss].discriminator(on_real, on_fake)
        values = {"real": on_real.mean(), "fake": on_fake.mean()}

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
    def sample(self, n: int, source: Source, labels: Labels = None) -> Float[Tensor, "n *shape"]:
        """Draws samples; a game with classes and without labels draws them, all classes alike."""
        if labels is None and self.classes:
            labels = integers(self.classes, (n,), source, self._device())
        return self.generate(n, source, labels)


class GAN(AdversarialGame):
    """The game with the convolutional networks of section 3.

    Args:
        channels: of the images, 1 or 3.
        size: their side in pixels.
        latent: numbers of noise an image.
        generator_width: channels of the generator at half the side.
        discriminator_width: channels of the discriminator at half the side.
        classes: number of labels; 0 plays without.
        normalise: of the discriminator, "spectral" or "none".
        loss: one of `LOSSES`.
        gradient_penalty: weight of the penalty between real and fake.
        r1: weight of the penalty at the real images.

    Raises:
        ValueError: as from `Generator`, `Discriminator` and `AdversarialGame`.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        latent: int = 64,
        generator_width: int = 32,
        discriminator_width: int = 32,
        classes: int = 0,
        normalise: str = "spectral",
        loss: str = "hinge",
        gradient_penalty: float | int = 0.0,
        r1: float | int = 0.0,
    ) -> None:
        super().__init__(
            Generator(latent, channels, size, generator_width, classes),
            Discriminator(channels, size, discriminator_width, classes, normalise),
            latent,
            classes=classes,
            loss=loss,
            gradient_penalty=gradient_penalty,
            r1=r1,
        )
        self.channels, self.size, self.normalise = channels, size, normalise
        self.generator_width, self.discriminator_width = generator_width, discriminator_width


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
        self.down_1 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.down_2 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.middle = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
        self.up_2 = nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1)
        self.up_1 = nn.ConvTranspose2d(4 * width, width, 4, stride=2, padding=1)
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


class ImageToImage(nn.Module):
    """A network from one image to another, trained by a content loss, a judge of pairs, or both.

    The judge sees (given, answer) side by side as channels, so that an answer must fit its question and not only
    look real. There is no noise: one question has one answer.

    Args:
        channels: of the images.
        size: their side in pixels.
        generator_width: channels of the generator at the full side.
        discriminator_width: channels of the discriminator at half the side.
        content: weight of the mean squared error a pixel.
        adversarial: weight of the judge; at 0 it is not asked.
        loss: one of `LOSSES`.

    Raises:
        ValueError: if a weight is negative or both are 0, or as from `Discriminator`.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        generator_width: int = 16,
        discriminator_width: int = 16,
        content: float | int = 1.0,
        adversarial: float | int = 0.01,
        loss: str = "non-saturating",
    ) -> None:
        super().__init__()
        if min(content, adversarial) < 0 or content + adversarial == 0:
            raise ValueError(
                f"content and adversarial must not be negative, nor both 0, got {content} and {adversarial}."
            )
        if loss not in LOSSES:
            raise unknown_name("loss", loss, LOSSES)
        self.channels, self.size, self.loss = channels, size, loss
        self.generator_width, self.discriminator_width = generator_width, discriminator_width
        self.content, self.adversarial = content, adversarial
        self.generator = UNetGenerator(channels, generator_width)
        self.discriminator = Discriminator(2 * channels, size, discriminator_width)

    def forward(self, given: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns the answers, in [−1, 1]."""
        return self.generator(given)

    def discriminator_loss(
        self, given: Float[Tensor, "n c h w"], wanted: Float[Tensor, "n c h w"]
    ) -> dict[str, Scalar]:
        """Returns the judge's loss on (given, wanted) against (given, answer)."""
        with torch.no_grad():
            answer = self(given).to(given.dtype)
        real = self.discriminator(torch.cat([given, wanted], dim=1))
        fake = self.discriminator(torch.cat([given, answer], dim=1))
        loss = LOSSES[self.loss].discriminator(real, fake)
        return {"loss": loss, "real": real.mean(), "fake": fake.mean()}

    def generator_loss(
        self, given: Float[Tensor, "n c h w"], wanted: Float[Tensor, "n c h w"]
    ) -> dict[str, Scalar]:
        """Returns the weighted sum, and the content term alone."""
        answer = self(given).float()
        content = F.mse_loss(answer, wanted)
        loss = self.content * content
        if self.adversarial:
            logits = self.discriminator(torch.cat([given, answer], dim=1))
            loss = loss + self.adversarial * LOSSES[self.loss].generator(logits)
        return {"loss": loss, "content": content}
