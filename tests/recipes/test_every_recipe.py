"""All recipes alike: each trains, and every loss and every number that it reports is computed a second time here.

What is checked against is written out from the formulas, from the same images and the same random numbers: a weight
that is left out, a sign, a term in another's place, a network trained on another's loss, a measure of another noise
level show.
"""

import atexit
import copy
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from companion.autoencoder import fit_mixture
from companion.checkpoints import Card, load_checkpoint, save_checkpoint
from companion.clip import CLIP
from companion.data import ImageDataset, load
from companion.data.batch import Batch
from companion.data.scenes import scenes
from companion.evaluation import Evaluator, labelled
from companion.gan import TASKS
from companion.measurement import Measurement
from companion.metrics import fid, inception_score, kid, precision_recall, sharpness
from companion.metrics.features import digit_features, digit_probabilities
from companion.metrics.scene_oracle import accuracies
from companion.nn.tokenizer import BytePairTokenizer
from companion.randomness import (
    PerImage,
    Rows,
    Source,
    derive,
    initialisation,
    normal,
    uniform,
)
from companion.recipes import RECIPES, Recipe, Splits, make_checkpoint, recipe_of
from companion.training import Objective, Trainer, random_affine
from companion.vq_vae import VQVAE, VQVAEConfig

TINY = {"data": "digits", "steps": 2, "batch_size": 8, "seed": 5, "precision": "32-true"}
GAN = {"generator_width": 4, "discriminator_width": 4, "latent_dim": 5}
VAE = {"architecture": "mlp", "width": 2, "latent_dim": 3, "iwae": 4}
PAIR = {"encoder_width": 4, "decoder_width": 8, "discriminator_width": 4, "latent_dim": 5}
GPT = {"width": 8, "layers": 1, "heads": 2}
CNN = {"width": 4, "layers": 1, "dilation_cycle": 1}
PRIOR = GPT | {"dropout": 0.0}
CODES = {"width": 4, "codes": 20, "code_dim": 3, "blocks": 1}
CLIPS = {"data": "scenes", "width": 8, "heads": 2, "layers": 1, "features": 4, "patch": 8}
DVAES = {"data": "scenes", "width": 4, "codes": 20, "blocks": 1}
PAIRS = {"data": "scenes", "width": 8, "heads": 2, "layers": 1, "best_of": 2}
# On which small networks recipes build here, by the settings that name them.
PARENTS = {
    "code-prior": {"tokenizer": "vq-vae"},
    "dalle": {"tokenizer": "vq-vae-scenes", "judge": "clip"},
}

# Every recipe, and variants that take the other way at each fork in one.
VARIANTS: dict[str, tuple[str, dict]] = {
    "autoencoder": ("autoencoder", {"width": 4, "latent_dim": 6, "parts": 3}),
    "autoencoder, perceptron": (
        "autoencoder",
        {"width": 4, "latent_dim": 6, "architecture": "mlp", "parts": 1},
    ),
    "clip": ("clip", CLIPS),
    "code-prior": ("code-prior", PRIOR),
    "code-prior, conditional": ("code-prior", PRIOR | {"conditional": True}),
    "dalle": ("dalle", PAIRS),
    "dalle, sparse": ("dalle", PAIRS | {"attention": "sparse", "kernel": 3, "temperature": 0.7}),
    "dvae": ("dvae", DVAES),
    "denoising autoencoder": ("denoising-autoencoder", {"width": 4, "latent_dim": 6}),
    "denoising autoencoder, one level": (
        "denoising-autoencoder",
        {"width": 4, "latent_dim": 6, "corruption": "masking", "amount": 0.3, "amount_max": None},
    ),
    "masked autoencoder": (
        "masked-autoencoder",
        {"width": 16, "layers": 1, "decoder_width": 8, "heads": 2},
    ),
    "masked autoencoder, standardised": (
        "masked-autoencoder",
        {"width": 8, "layers": 1, "decoder_width": 12, "heads": 2, "normalise_targets": True},
    ),
    "pixelcnn": ("pixelcnn", CNN),
    "pixelcnn, plain": ("pixelcnn", CNN | {"gated": False, "conditional": True, "levels": 3}),
    "pixelcnn-cifar10": ("pixelcnn-cifar10", CNN | {"mixtures": 2, "dropout": 0.0}),
    "vae": ("vae", VAE | {"beta": 0.7, "free_nats": 0.0}),
    "vae, convolutional": ("vae", VAE | {"architecture": "convolutional", "width": 4, "iwae": 0}),
    "vae, gaussian": ("vae", VAE | {"likelihood": "gaussian"}),
    "vae, conditional": ("vae", VAE | {"conditional": True}),
    "gan": ("gan", GAN),
    "gan, conditional": ("gan", GAN | {"conditional": True, "loss": "minimax"}),
    "gan, penalised": (
        "gan",
        GAN | {"loss": "wasserstein", "gradient_penalty": 3.0, "normalisation": "none"},
    ),
    "gan, r1": ("gan", GAN | {"loss": "non-saturating", "r1": 2.0, "normalisation": "none"}),
    "gan-cifar10": ("gan-cifar10", GAN | {"generator_every": 1}),
    "image-gpt": ("image-gpt", GPT),
    "image-gpt, conditional": ("image-gpt", GPT | {"conditional": True, "neighbours": False}),
    "image-gpt-cifar10": ("image-gpt-cifar10", GPT | {"patch": 2, "levels": 3}),
    "image to image": ("image-to-image", {"generator_width": 4, "discriminator_width": 4}),
    "image to image, content": (
        "image-to-image",
        {"generator_width": 4, "discriminator_width": 4, "adversarial": 0.0, "task": "denoising"},
    ),
    "vae-gan": ("vae-gan", PAIR | {"beta": 0.6, "gamma": 0.05, "adversarial": 0.8}),
    "vae-gan-pixels": ("vae-gan-pixels", PAIR),
    "vq-vae": ("vq-vae", CODES),
    "vq-vae, gradient": (
        "vq-vae",
        CODES | {"codebook": "gradient", "start": "uniform", "commitment": 0.4},
    ),
    "vq-vae-cifar10": ("vq-vae-cifar10", CODES),
    "vq-vae-scenes": ("vq-vae-scenes", CODES),
    "digit classifier": ("digit-cnn", {"width": 4}),
}


def recipe_named(variant: str) -> Recipe:
    name, settings = VARIANTS[variant]
    recipe = RECIPES[name].replace(**(TINY | settings))
    built = {f: checkpoints()[v] for f, v in PARENTS.get(name, {}).items()}
    return recipe.replace(**built)


def saved(folder: Path, name: str, network: nn.Module) -> str:
    save_checkpoint(network, Card(name=name), folder)
    return str(folder / f"{name}.safetensors")


@cache
def checkpoints() -> dict[str, str]:
    """Small networks, not trained, for recipes to build on, by the names of the recipes that would train them."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    captions = RECIPES["clip"].replace(width=8, features=4).config(scenes("train", 100))
    colour = VQVAEConfig(channels=3, size=32, **CODES)
    with initialisation(3):
        return {
            "vq-vae": saved(folder, "vq-vae", VQVAE(VQVAEConfig(**CODES))),
            "vq-vae-scenes": saved(folder, "vq-vae-scenes", VQVAE(colour)),
            "clip": saved(folder, "clip", CLIP(captions)),
        }


def networks_of(recipe: Recipe) -> dict[str, nn.Module]:
    return {role: load_checkpoint(path) for role, path in recipe.parents().items()}


def objective_of(recipe: Recipe, few: "Few") -> Objective:
    return recipe.objective(few.train, networks_of(recipe))


every_variant = pytest.mark.parametrize("variant", list(VARIANTS))


def test_no_recipe_is_left_out():
    assert {name for name, _ in VARIANTS.values()} == set(RECIPES)


# --- The losses, from their formulas ------------------------------------------------------------------------------

Values = Mapping[str, Tensor]


def mse(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).mean()


def kl_to_prior(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) of each coordinate."""
    return 0.5 * (mu**2 + log_var.exp() - 1 - log_var)


def told(loss: str, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on logits."""
    if loss == "hinge":
        return (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    if loss == "wasserstein":
        return fake.mean() - real.mean()
    return -F.logsigmoid(real).mean() - F.logsigmoid(-fake).mean()


def fooled(loss: str, fake: Tensor) -> Tensor:
    """The generator's loss on logits."""
    if loss in ("hinge", "wasserstein"):
        return -fake.mean()
    if loss == "minimax":
        return F.logsigmoid(-fake).mean()
    return -F.logsigmoid(fake).mean()


def slope(discriminator: nn.Module, x: Tensor, *given: Tensor) -> Tensor:
    """The norm of the discriminator's gradient at each image."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(x, *given).sum(), x)
    return gradient.flatten(1).norm(dim=1)


def autoencoder_loss(r: Recipe, net: nn.Module, b: Batch, s: Source) -> dict[str, Values]:
    return {"loss": lambda: {"loss": mse(net.decoder(net.encoder(b.images)), b.images)}}


def denoising_loss(r, net, b, s):
    def loss():
        x, c = b.images, r.network
        if c.corruption == "gaussian":
            u = uniform((len(x),), s)
            level = c.amount * (c.amount_max / c.amount) ** u
            noisy = x + level[:, None, None, None] * normal(tuple(x.shape), s)
        else:
            hidden = round(c.amount * 28 * 28)
            order = uniform((len(x), 1, 28, 28), s).flatten(1).argsort(dim=1)
            noisy = x.flatten(1).clone()
            noisy.scatter_(1, order[:, :hidden], -1.0)
            noisy = noisy.reshape(x.shape)
        return {"loss": mse(net.decoder(net.encoder(noisy)), x)}

    return {"loss": loss}


def masked_errors(r, net, x, s) -> Tensor:
    """The mean squared error of each image's hidden patches, one image and one patch at a time."""
    c = r.network
    side = 28 // c.patch
    order = uniform((len(x), side * side), s).argsort(dim=1)
    kept = side * side - round(c.mask_ratio * side * side)
    predicted = net(x, net.masking(len(x), _Again(order)))
    errors = []
    for image, hidden, guess in zip(x, order[:, kept:], predicted, strict=True):
        total = 0.0
        for place in hidden.tolist():
            row, column = divmod(place, side)
            patch = image[:, row * c.patch : (row + 1) * c.patch]
            patch = (
                patch[:, :, column * c.patch : (column + 1) * c.patch].permute(1, 2, 0).flatten()
            )
            if c.normalise_targets:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total = total + mse(guess[place], patch)
        errors.append(total / len(hidden))
    return torch.stack(errors)


class _Again(PerImage):
    """Stands for a source that draws what gives an order that is known."""

    def __init__(self, order: Tensor) -> None:
        super().__init__(0, 0, len(order))
        self.order = order


def masked_loss(r, net, b, s):
    return {"loss": lambda: {"loss": masked_errors(r, net, b.images, s).mean()}}


def observed(r, x, s) -> Tensor:
    if r.network.likelihood == "bernoulli":
        return torch.where(uniform(tuple(x.shape), s) < (x + 1) / 2, 1.0, -1.0)
    # Bytes, made continuous by uniform noise of half a byte to each side.
    return (((x + 1) * 127.5 + uniform(tuple(x.shape), s) - 0.5) / 127.5) - 1


def log_p(r, net, x, z, *given) -> Tensor:
    raw = net.decode_raw(z, *given)
    if r.network.likelihood == "bernoulli":
        pixels = -F.binary_cross_entropy_with_logits(raw, (x + 1) / 2, reduction="none")
    else:
        pixels = -0.5 * (
            (x - raw) ** 2 / net.log_var_x.exp() + net.log_var_x + math.log(2 * math.pi)
        )
    return pixels.flatten(1).sum(dim=1)


def bound(r, net, x, s, *given) -> tuple[Tensor, Tensor]:
    """log p(x|z) and the KL of each image."""
    x = observed(r, x, s)
    mu, log_var = net.encode(x, *given)
    z = mu + log_var.exp().sqrt() * normal(tuple(mu.shape), s)
    return log_p(r, net, x, z, *given), kl_to_prior(mu, log_var).sum(dim=1)


def vae_loss(r, net, b, s):
    def loss():
        given = [b.labels] if r.conditional else []
        likelihood, kl = bound(r, net, b.images, s, *given)
        total = (-likelihood + r.network.beta * kl).mean()
        return {"loss": total, "reconstruction": -likelihood.mean(), "kl": kl.mean()}

    return {"loss": loss}


def pixel_tokens(r, x, s) -> Tensor:
    """The number of each block, its pixels' levels as digits in base `levels`, pixel by pixel."""
    c, (n, _, side, _) = r.network, x.shape
    if c.levels == 2:
        x = torch.where(uniform(tuple(x.shape), s) < (x + 1) / 2, 1.0, -1.0)
    level = ((x + 1) / 2 * (c.levels - 1)).round().long()
    tokens = torch.zeros(n, side // c.patch, side // c.patch, dtype=torch.int64)
    for row in range(side):
        for column in range(side):
            place = row % c.patch * c.patch + column % c.patch
            tokens[:, row // c.patch, column // c.patch] += (
                level[:, 0, row, column] * c.levels**place
            )
    return tokens


def cnn_pixels(r, x, s) -> Tensor:
    """What is modelled of images: bits that are drawn, or the nearest levels."""
    top = (r.network.levels - 1) / 2
    if r.network.levels == 2:
        return torch.where(uniform(tuple(x.shape), s) < (x + 1) / 2, 1.0, -1.0)
    return ((x + 1) * top).round() / top - 1


def cnn_nats(r, net, x, *given) -> Tensor:
    """−log P of grey images."""
    c, out = r.network, net(x, *given)
    level = ((x + 1) * (c.levels - 1) / 2).round().long()
    if c.likelihood == "categorical":
        return -out.log_softmax(dim=1).gather(1, level).sum(dim=(1, 2, 3))
    pi, (mu, log_s) = out[:, : c.mixtures], out[:, c.mixtures :].unflatten(1, (-1, 2)).unbind(2)
    scale, half = log_s.clamp(min=-7).exp(), 1 / (c.levels - 1)
    upper = ((x + half - mu) / scale).sigmoid().where(level < c.levels - 1, torch.tensor(1.0))
    lower = ((x - half - mu) / scale).sigmoid().where(level > 0, torch.tensor(0.0))
    # An untrained network's bins all have mass enough to be subtracted.
    return -(pi.softmax(dim=1) * (upper - lower)).sum(dim=1).log().sum(dim=(1, 2))


def cnn_loss(r, net, b, s):
    def loss():
        given = [b.labels] if r.conditional else []
        nats = cnn_nats(r, net, cnn_pixels(r, b.images, s), *given).mean()
        return {"loss": nats / 784, "nats": nats}

    return {"loss": loss}


def gpt_nats(r, net, x, s, *given) -> Tensor:
    tokens = pixel_tokens(r, x, s)
    p = net.gpt(tokens, *given).softmax(dim=-1)
    return -p.gather(-1, tokens.flatten(1)[..., None]).log().sum(dim=(1, 2))


def gpt_loss(r, net, b, s):
    def loss():
        nats = gpt_nats(r, net, b.images, s, *([b.labels] if r.conditional else [])).mean()
        return {"loss": nats / 784, "nats": nats}

    return {"loss": loss}


def prior_loss(r, net, b, s):
    def loss():
        codes = networks_of(r)["tokenizer"].tokenize(b.images)
        p = net(codes, *([b.labels] if r.conditional else [])).softmax(dim=-1)
        nats = -p.gather(-1, codes.flatten(1)[..., None]).log().sum(dim=(1, 2)).mean()
        return {"loss": nats / 49, "nats": nats}

    return {"loss": loss}


def of_pairs(r, net, x, captions) -> tuple[Tensor, Tensor]:
    """−log P of each text, and of each image given its text."""
    codes = networks_of(r)["tokenizer"].tokenize(x)
    rows = []
    for caption in captions:
        row = net.captions.encode(caption)
        rows.append(row + [net.captions.vocabulary + place for place in range(len(row), 16)])
    text = torch.tensor(rows)
    p_text, p_image = (logits.softmax(dim=-1) for logits in net(text, codes))
    return (
        -p_text.gather(-1, text[..., None]).log().sum(dim=(1, 2)),
        -p_image.gather(-1, codes.flatten(1)[..., None]).log().sum(dim=(1, 2)),
    )


def dalle_loss(r, net, b, s):
    def loss():
        text, image = (nats.mean() for nats in of_pairs(r, net, b.images, b.captions))
        return {"loss": (text / 16 + 7 * image / 64) / 8, "text": text / 16, "image": image / 64}

    return {"loss": loss}


def clip_loss(r, net, b, s):
    def loss():
        x = net.image_tower(b.images)
        y = net.text_tower(*net.tokenize(b.captions))
        x, y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
        scale = net.log_scale.exp()
        losses = []
        for i, mine in enumerate(b.captions):
            rivals = [j for j, other in enumerate(b.captions) if j == i or other != mine]
            here = rivals.index(i)
            losses.append(-(scale * x[i] @ y[rivals].T).log_softmax(dim=0)[here])
            losses.append(-(scale * y[i] @ x[rivals].T).log_softmax(dim=0)[here])
        return {"loss": torch.stack(losses).mean(), "scale": scale}

    return {"loss": loss}


def dvae_loss(r, net, b, s):
    def loss():
        done = (int(net.images_seen) // r.batch_size) / r.steps

        def between(first, last, share):
            return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1, done / share)))

        logits = net.encode(b.images)
        g = -torch.log(-torch.log(uniform(tuple(logits.shape), s).clamp(min=2.0**-24)))
        z = ((logits + g) / between(1.0, r.temperature, r.temperature_share)).softmax(dim=-1)
        mu, log_b = net.decode(z)
        y = 0.8 * (b.images + 1) / 2 + 0.1
        density = -(y.logit() - mu).abs() / log_b.exp() - log_b - (2 * y * (1 - y)).log()
        q = logits.softmax(dim=-1)
        kl = (q * (q * 20).log()).sum(dim=(1, 2, 3)).mean()
        rebuilt = -density.flatten(1).sum(dim=1).mean()
        total = (rebuilt + between(r.beta_first, r.beta, r.beta_share) * kl) / 3072
        return {"loss": total, "reconstruction": rebuilt, "kl": kl}

    return {"loss": loss}


def gan_loss(r, net, b, s):
    given = [b.labels] if r.conditional else []
    c, n = r.network, len(b.images)

    def discriminator():
        fake = net.generator(normal((n, c.latent_dim), s), *given).detach()
        real, logits = net.discriminator(b.images, *given), net.discriminator(fake, *given)
        values = {"loss": told(c.loss, real, logits), "real": real.mean(), "fake": logits.mean()}
        if c.gradient_penalty:
            t = uniform((n, 1, 1, 1), s)
            between = t * b.images + (1 - t) * fake
            values["penalty"] = ((slope(net.discriminator, between) - 1) ** 2).mean()
            values["loss"] = values["loss"] + c.gradient_penalty * values["penalty"]
        if c.r1:
            values["r1"] = 0.5 * (slope(net.discriminator, b.images) ** 2).mean()
            values["loss"] = values["loss"] + c.r1 * values["r1"]
        return values

    def generator():
        fake = net.generator(normal((n, c.latent_dim), s), *given)
        return {"loss": fooled(c.loss, net.discriminator(fake, *given))}

    return {"discriminator": discriminator, "generator": generator}


def image_to_image_loss(r, net, b, s):
    c = r.network

    def discriminator():
        given, wanted = TASKS[r.task](b.images, s)
        answer = net.generator(given).detach()
        real = net.discriminator(torch.cat([given, wanted], dim=1))
        fake = net.discriminator(torch.cat([given, answer], dim=1))
        return {"loss": told(c.loss, real, fake), "real": real.mean(), "fake": fake.mean()}

    def generator():
        given, wanted = TASKS[r.task](b.images, s)
        answer = net.generator(given)
        content = mse(answer, wanted)
        loss = c.content * content
        if c.adversarial:
            logits = net.discriminator(torch.cat([given, answer], dim=1))
            loss = loss + c.adversarial * fooled(c.loss, logits)
        return {"loss": loss, "content": content}

    phases = {"discriminator": discriminator, "generator": generator}
    return phases if c.adversarial else {"generator": generator}


def vae_gan_loss(r, net, b, s):
    c, x, n = r.network, b.images, len(b.images)

    def again():
        mu, log_var = net.encoder(x).chunk(2, dim=1)
        log_var = log_var.clamp(-12, 4)
        z = mu + log_var.exp().sqrt() * normal((n, c.latent_dim), s)
        return net.decoder(z), kl_to_prior(mu, log_var).sum(dim=1)

    def distance(y):
        """Half the squared distance, in features or pixels, times the precision."""
        if c.features:
            of_x = net.discriminator.features(x)[c.layer].detach()
            off = of_x - net.discriminator.features(y)[c.layer]
        else:
            off = x - y
        return 0.5 * c.observation_precision * (off**2).flatten(1).sum(dim=1).mean()

    def drawn():
        return net.decoder(normal((n, c.latent_dim), s))

    def discriminator():
        y, p = again()[0].detach(), drawn().detach()
        real, of_y, of_p = net.discriminator(x), net.discriminator(y), net.discriminator(p)
        return {
            "loss": told(c.loss, real, torch.cat([of_y, of_p])),
            "real": real.mean(),
            "reconstructions": of_y.mean(),
            "samples": of_p.mean(),
        }

    def encoder():
        y, kl = again()
        return {"loss": c.beta * kl.mean() + distance(y), "KL": kl.mean()}

    def decoder():
        y, _ = again()
        loss = c.gamma * distance(y)
        if c.adversarial:
            p = drawn()
            loss = loss + c.adversarial * fooled(
                c.loss, torch.cat([net.discriminator(y), net.discriminator(p)])
            )
        return {"loss": loss}

    phases = {"discriminator": discriminator, "encoder": encoder, "decoder": decoder}
    if not c.features and not c.adversarial:
        del phases["discriminator"]
    return phases


def classifier_loss(r, net, b, s):
    def loss():
        x = random_affine(
            b.images, s, degrees=r.degrees, scale=r.scale, shear=r.shear, shift=r.shift
        )
        picked = net(x).log_softmax(dim=1)[torch.arange(len(x)), b.labels]
        return {"loss": -picked.mean()}

    return {"loss": loss}


# --- The measures, from their formulas ----------------------------------------------------------------------------

SAMPLES = 24


class Few(Splits):
    """The splits of a recipe, cut down to few images."""

    def __init__(self, train: ImageDataset, held_out: ImageDataset) -> None:
        super().__init__(RECIPES["digit-cnn"].replace(data="digits"))
        # What has been loaded is not loaded again.
        vars(self).update(train=train, held_out=held_out)


@cache
def few_digits() -> Few:
    train = load("digits", "train").shuffled(torch.Generator().manual_seed(0))
    return Few(train[:400], load("digits", "test")[::25])


@cache
def few_scenes() -> Few:
    return Few(scenes("train", 400), scenes("test", 130))


@pytest.fixture(autouse=True)
def fewer_scenes(monkeypatch):
    for number in ("SCENES", "TEST_SCENES"):
        monkeypatch.setattr(f"companion.data.catalogue.{number}", 130)


@pytest.fixture
def few(variant: str) -> Few:
    """What a variant is tried on."""
    return few_scenes() if VARIANTS[variant][1].get("data") == "scenes" else few_digits()


Found = dict[tuple[str, str], float]


def reconstructed(x: Tensor, y: Tensor, of: str = "") -> Found:
    each = ((x - y.clamp(-1, 1)) ** 2).mean(dim=(1, 2, 3))
    return {
        ("reconstruction MSE", of): float(each.mean()),
        ("reconstruction PSNR", of): float((10 * torch.log10(4 / each)).mean()),
    }


def probed(encode: Callable[[Tensor], Tensor], few: Few) -> Found:
    a, b = (encode(d.floats()).flatten(1).double().numpy() for d in (few.train, few.held_out))
    shares = []
    for draw in range(5):
        chosen = labelled(few.train.labels, 100, derive(0, "labels", draw)).numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(a[chosen], few.train.labels.numpy()[chosen])
        shares.append((model.predict(b) == few.held_out.labels.numpy()).mean())
    mean = np.mean(shares)
    return {
        ("linear probe accuracy", "100 labels"): mean,
        ("linear probe accuracy spread", "100 labels"): math.sqrt(np.mean((shares - mean) ** 2)),
    }


def quality(drawn: Tensor, few: Few, of: str = "") -> Found:
    drawn, real = drawn.clamp(-1, 1), few.held_out.floats()
    a, b = digit_features(real), digit_features(drawn)
    agreement = precision_recall(a, b, 3)
    found = {
        "FID": fid(a, b),
        "KID": kid(a, b).mean,
        "precision": agreement.precision,
        "recall": agreement.recall,
        "Inception Score": inception_score(digit_probabilities(drawn)).mean,
        "sharpness, share of real": float(sharpness(drawn).mean() / sharpness(real).mean()),
    }
    return {(name, of): value for name, value in found.items()}


def images(few: Few, name: str) -> tuple[Tensor, PerImage]:
    x = few.held_out.floats()
    return x, PerImage(0, 0, len(x), name)


def samples() -> PerImage:
    return PerImage(0, 0, SAMPLES)


def autoencoder_measures(r: Recipe, net: nn.Module, few: Few) -> Found:
    x, _ = images(few, "")
    codes = net.encoder(few.train.floats())
    density = fit_mixture(codes, r.parts, derive(r.seed, "mixture"))
    drawn = net.decoder(density.sample(SAMPLES, samples()))
    return (
        reconstructed(x, net.decoder(net.encoder(x)))
        | probed(net.encoder, few)
        | quality(drawn, few, "codes from a mixture")
    )


def denoising_measures(r, net, few):
    c, found = r.network, {}
    for level in sorted({c.amount, 0.5, c.amount_max or c.amount}):
        x, s = images(few, f"noise {level:g}")
        if c.corruption == "gaussian":
            noisy = x + level * normal(tuple(x.shape), s)
        else:
            order = uniform((len(x), 1, 28, 28), s).flatten(1).argsort(dim=1)
            noisy = x.flatten(1).scatter(1, order[:, : round(level * 784)], -1.0).reshape(x.shape)
        found |= reconstructed(x, net.decoder(net.encoder(noisy)), f"noise {level:g}")
    found |= probed(net.encoder, few)
    if c.corruption == "gaussian":
        s = samples()
        levels = np.geomspace(c.amount_max, c.amount, 100)
        y = -1 + c.amount_max * normal((SAMPLES, 1, 28, 28), s)
        for now, then in pairwise(levels):
            ratio = (then / now) ** 2
            clean = net.decoder(net.encoder(y))
            z = normal((SAMPLES, 1, 28, 28), s)
            y = clean + ratio * (y - clean) + then * math.sqrt(1 - ratio) * z
        found |= quality(net.decoder(net.encoder(y)), few)
    return found


def masked_measures(r, net, few):
    x, s = images(few, "masks")
    mean = float(masked_errors(r, net, x, s).mean())
    return {("MSE of hidden patches", ""): mean} | probed(lambda x: net.encode(x).mean(dim=1), few)


def vae_measures(r, net, few):
    x, s = images(few, "elbo")
    given = [few.held_out.labels] if r.conditional else []
    likelihood, kl = bound(r, net, x, s, *given)
    found = {
        ("−ELBO", ""): float((kl - likelihood).mean()),
        ("reconstruction term", ""): float(-likelihood.mean()),
        ("KL", ""): float(kl.mean()),
    }
    if r.network.likelihood == "gaussian":
        # Nats of a density over [−1, 1] to bits of a byte.
        nats = found["−ELBO", ""] / 784
        found["bits/dim", ""] = nats / math.log(2) + math.log2(127.5)
    if r.iwae:
        x, s = images(few, "iwae")
        x = observed(r, x, s)
        mu, log_var = net.encode(x, *given)
        eps = normal((len(x), r.iwae, r.network.latent_dim), s)
        logs = []
        for i in range(r.iwae):
            z = mu + log_var.exp().sqrt() * eps[:, i]
            prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
            posterior = torch.distributions.Normal(mu, log_var.exp().sqrt()).log_prob(z).sum(dim=1)
            logs.append(log_p(r, net, x, z, *given) + prior - posterior)
        tight = torch.stack(logs, dim=1).logsumexp(dim=1) - math.log(r.iwae)
        found[f"−IWAE-{r.iwae}", ""] = float(-tight.mean())
    s = samples()
    labels = []
    if r.conditional:
        labels = [torch.stack([torch.randint(10, (), generator=g) for g in s.generators])]
    raw = net.decode_raw(normal((SAMPLES, r.network.latent_dim), s), *labels)
    drawn = 2 * raw.sigmoid() - 1 if r.network.likelihood == "bernoulli" else raw.clamp(-1, 1)
    return found | quality(drawn, few)


def repeated(again: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns what is drawn one after the other, by whole passes: the only draw that leads to itself.

    Of each draw all is drawn anew, given what came before it there. What depends on nothing is right at once, and what
    comes after that in the next round: after as many rounds as there are numbers at most, nothing changes any more.
    """
    for _ in range(x[0].numel() + 1):
        x, before = again(x), x
        if torch.equal(x, before):
            return x
    raise AssertionError("a number depends on what comes after it")


def drawn_in_turn(u, logits_at, temperature=1.0) -> Tensor:
    """Tokens, each the first at which the cumulative probability exceeds its number."""

    def again(tokens: Tensor) -> Tensor:
        p = (logits_at(tokens) / temperature).softmax(dim=-1)
        return (p.cumsum(dim=-1) <= u[..., None]).sum(dim=-1).clamp(max=p.shape[-1] - 1)

    return repeated(again, torch.zeros(u.shape, dtype=torch.int64))


def gpt_measures(r, net, few):
    x, s = images(few, "pixels")
    nats = float(gpt_nats(r, net, x, s, *([few.held_out.labels] if r.conditional else [])).mean())
    x, s = images(few, "pixels")
    tokens = pixel_tokens(r, x, s)
    real = few.held_out.images.clone()
    real.copy_(((net.detokenize(tokens) + 1) * 127.5).round())
    s, labels = samples(), []
    if r.conditional:
        labels = [torch.stack([torch.randint(10, (), generator=g) for g in s.generators])]
    u = uniform((SAMPLES, net.gpt.length), s)
    grid = drawn_in_turn(u, lambda t: net.gpt(t.view(SAMPLES, *net.grid), *labels))
    drawn = net.detokenize(grid.view(SAMPLES, *net.grid))
    against = Few(few.train, replace(few.held_out, images=real))
    levels = r.network.levels
    of = {2: "black and white", 3: "3 levels", 256: "bytes"}[levels]
    found = {("−log p", of): nats, ("bits/dim", of): nats / 784 / math.log(2)}
    return found | quality(drawn, against, of)


def cnn_measures(r, net, few):
    c = r.network
    x, s = images(few, "pixels")
    nats = float(
        cnn_nats(r, net, cnn_pixels(r, x, s), *([few.held_out.labels] if r.conditional else []))
        .mean()
        .item()
    )
    x, s = images(few, "pixels")
    real = ((cnn_pixels(r, x, s) + 1) * 127.5).round().byte()
    s, labels = samples(), []
    if r.conditional:
        labels = [torch.stack([torch.randint(10, (), generator=g) for g in s.generators])]
    mixture = c.likelihood == "logistic-mixture"
    u = uniform((SAMPLES, 1 + mixture, 28, 28), s)
    top = (c.levels - 1) / 2

    def again(x: Tensor) -> Tensor:
        out = net(x, *labels)
        if mixture:
            m = c.mixtures
            pi, (mu, log_s) = out[:, :m], out[:, m:].unflatten(1, (m, 2)).unbind(2)
            k = (pi.softmax(1).cumsum(1) <= u[:, :1]).sum(1, keepdim=True)
            noise = log_s.clamp(min=-7).exp().gather(1, k) * u[:, 1:].logit()
            return (((mu.gather(1, k) + noise).clamp(-1, 1) + 1) * top).round() / top - 1
        p = out.softmax(1)
        # Of two levels the upper one is drawn where the number is below its probability.
        passed = u < p[:, 1:] if c.levels == 2 else p.cumsum(1) <= u
        return passed.sum(1, keepdim=True).clamp(max=c.levels - 1) / top - 1

    drawn = repeated(again, torch.full((SAMPLES, 1, 28, 28), -1.0))
    against = Few(few.train, replace(few.held_out, images=real))
    levels = r.network.levels
    of = {2: "black and white", 3: "3 levels", 256: "bytes"}[levels]
    found = {("−log p", of): nats, ("bits/dim", of): nats / 784 / math.log(2)}
    return found | quality(drawn, against, of)


def prior_measures(r, net, few):
    x, _ = images(few, "codes")
    tokenizer = networks_of(r)["tokenizer"]
    codes = tokenizer.tokenize(x)
    labels = [few.held_out.labels] if r.conditional else []
    p = net(codes, *labels).softmax(dim=-1)
    nats = -p.gather(-1, codes.flatten(1)[..., None]).log().sum(dim=(1, 2)).mean()
    s, labels = samples(), []
    if r.conditional:
        labels = [torch.stack([torch.randint(10, (), generator=g) for g in s.generators])]
    u = uniform((SAMPLES, 49), s)
    grid = drawn_in_turn(u, lambda t: net(t.view(SAMPLES, 7, 7), *labels)).view(SAMPLES, 7, 7)
    return {("−log P(codes)", ""): float(nats)} | quality(tokenizer.detokenize(grid), few)


def dalle_measures(r, net, few):
    x, captions = few.held_out.floats(), few.held_out.captions
    text, image = (float(nats.mean()) for nats in of_pairs(r, net, x, captions))
    found = {("−log P(text)", ""): text, ("−log P(image | text)", ""): image}
    parents = networks_of(r)
    tokenizer, judge = parents["tokenizer"], parents["judge"]
    for split, where in (("test", ""), ("composition", "composition: ")):
        real = load("scenes", split)[:SAMPLES]
        shown = {
            "real scenes": real.floats(),
            "reconstructions": tokenizer.detokenize(tokenizer.tokenize(real.floats())),
        }
        for many in (1, 2):
            u = uniform((SAMPLES, many, 64), samples()).flatten(0, 1)
            text = net.encode(real.captions).repeat_interleave(many, dim=0)
            tokens = drawn_in_turn(
                u,
                lambda t, text=text: net(text, t.view(len(t), 8, 8))[1],
                r.temperature,
            )
            every = tokenizer.detokenize(tokens.view(-1, 8, 8)).unflatten(0, (SAMPLES, many))
            best = [
                int((judge.encode_image(draws) @ judge.encode_text([c]).T).argmax())
                for draws, c in zip(every, real.captions, strict=True)
            ]
            shown["drawn" if many == 1 else "drawn, best of 2"] = torch.stack(
                [draws[k] for draws, k in zip(every, best, strict=True)]
            )
        for of, pictures in shown.items():
            for what, value in accuracies(pictures, real.captions).items():
                found[f"accuracy of {what}", where + of] = value
    return found


def clip_measures(r, net, few):
    found = {}
    for data, where in ((few.held_out, ""), (load("scenes", "composition"), "composition: ")):
        groups = len(data) // 64
        right = {"caption of 64": 0, "image of 64": 0}
        for g in range(groups):
            part = data[64 * g : 64 * g + 64]
            scores = net.encode_image(part.floats()) @ net.encode_text(part.captions).T
            for name, table in (("caption of 64", scores), ("image of 64", scores.T)):
                for i, row in enumerate(table):
                    right[name] += part.captions[int(row.argmax())] == part.captions[i]
        for name, count in right.items():
            found["retrieval accuracy", where + name] = count / (64 * groups)
    return found


def dvae_measures(r, net, few):
    x = few.held_out.floats()
    tokens = net.encode(x).argmax(dim=-1)
    p = torch.bincount(tokens.flatten()).double() / tokens.numel()
    bits = -float((p[p > 0] * p[p > 0].log2()).sum())
    one_hot = F.one_hot(tokens, 20).float()
    mu, _ = net.decode(one_hot)
    again = (2 * (mu.sigmoid() - 0.1) / 0.8 - 1).clamp(-1, 1)
    read = accuracies(again, few.held_out.captions)
    return (
        reconstructed(x, again)
        | {
            ("perplexity", ""): 2**bits,
            ("bits per image", ""): 64 * math.log2(20),
            ("bits per image", "by usage"): 64 * bits,
        }
        | {(f"accuracy of {what}", "reconstructions"): value for what, value in read.items()}
    )


def gan_measures(r, net, few):
    s = samples()
    labels = []
    if r.conditional:
        labels = [torch.stack([torch.randint(10, (), generator=g) for g in s.generators])]
    return quality(net.generator(normal((SAMPLES, r.network.latent_dim), s), *labels), few)


def image_to_image_measures(r, net, few):
    x, s = images(few, r.task)
    given, wanted = TASKS[r.task](x, s)
    answer = net.generator(given).clamp(-1, 1)
    each = ((answer - wanted) ** 2).mean(dim=(1, 2, 3))
    return {
        ("reconstruction PSNR", r.task): float((10 * torch.log10(4 / each)).mean()),
        ("sharpness, share of real", r.task): float(
            sharpness(answer).mean() / sharpness(wanted).mean()
        ),
        ("FID", r.task): fid(digit_features(wanted), digit_features(answer)),
    }


def vae_gan_measures(r, net, few):
    x, _ = images(few, "")
    mean = net.encoder(x).chunk(2, dim=1)[0]
    drawn = net.decoder(normal((SAMPLES, r.network.latent_dim), samples()))
    return reconstructed(x, net.decoder(mean)) | quality(drawn, few)


def vq_vae_loss(r, net, b, s):
    def loss():
        x, c = b.images, r.network
        q = net.quantizer
        z = net.encoder(x).permute(0, 2, 3, 1)
        if not q.started:
            q._start(z.detach(), s)  # tests/test_vq_vae.py has what it does
        e = q.codebook[(z[..., None, :] - q.codebook).square().sum(-1).argmin(-1)]
        through = z + (e - z).detach()
        reconstruction = mse(net.decoder(through.permute(0, 3, 1, 2)), x)
        commitment = mse(z, e.detach())
        codebook = mse(e, z.detach()) if c.codebook == "gradient" else torch.zeros(())
        total = reconstruction + codebook + c.commitment * commitment
        return {"loss": total, "commitment": commitment, "codebook": codebook}

    return {"loss": loss}


def vq_vae_measures(r, net, few):
    x, _ = images(few, "")
    q = net.quantizer
    z = net.encoder(x).permute(0, 2, 3, 1)
    tokens = (z[..., None, :] - q.codebook).square().sum(-1).argmin(-1)
    again = net.decoder(q.codebook[tokens].permute(0, 3, 1, 2)).clamp(-1, 1)
    p = torch.bincount(tokens.flatten()).double() / tokens.numel()
    bits = -float((p[p > 0] * p[p > 0].log2()).sum())
    found = reconstructed(x, again) | {
        ("perplexity", ""): 2**bits,
        ("bits per image", ""): 49 * math.log2(20),
        ("bits per image", "by usage"): 49 * bits,
        ("FID", "reconstructions"): fid(digit_features(x), digit_features(again)),
    }
    s = samples()
    drawn = torch.stack([torch.randint(20, (7, 7), generator=g) for g in s.generators])
    drawn = net.decoder(q.codebook[drawn].permute(0, 3, 1, 2)).clamp(-1, 1)
    return found | quality(drawn, few, "uniform codes")


def classifier_measures(r, net, few):
    x, _ = images(few, "")
    return {("accuracy", ""): float((net(x).argmax(dim=1) == few.held_out.labels).double().mean())}


KINDS: dict[str, tuple[Callable, Callable]] = {
    "AutoencoderRecipe": (autoencoder_loss, autoencoder_measures),
    "DenoisingAutoencoderRecipe": (denoising_loss, denoising_measures),
    "MaskedAutoencoderRecipe": (masked_loss, masked_measures),
    "PixelCNNRecipe": (cnn_loss, cnn_measures),
    "VAERecipe": (vae_loss, vae_measures),
    "CLIPRecipe": (clip_loss, clip_measures),
    "CodePriorRecipe": (prior_loss, prior_measures),
    "DALLERecipe": (dalle_loss, dalle_measures),
    "DVAERecipe": (dvae_loss, dvae_measures),
    "GANRecipe": (gan_loss, gan_measures),
    "ImageGPTRecipe": (gpt_loss, gpt_measures),
    "ImageToImageRecipe": (image_to_image_loss, image_to_image_measures),
    "VAEGANRecipe": (vae_gan_loss, vae_gan_measures),
    "VQVAERecipe": (vq_vae_loss, vq_vae_measures),
    "DigitCNNRecipe": (classifier_loss, classifier_measures),
}

# What each phase trains; the others' weights stay.
PARTS = {
    "discriminator": ("discriminator",),
    "generator": ("generator",),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
}


@pytest.fixture(autouse=True)
def orders(monkeypatch):
    """Lets `MaskedAutoencoder.masking` take an order that this test has drawn already."""
    import companion.masked_autoencoder as module

    draw = module.uniform

    def drawn(shape, source, device=None):
        # The places of the numbers 0 … t − 1 in the order give that order back when they are sorted.
        if isinstance(source, _Again):
            return source.order.argsort(dim=1).float()
        return draw(shape, source, device)

    monkeypatch.setattr(module, "uniform", drawn)


# --- The tests ----------------------------------------------------------------------------------------------------


@every_variant
def test_the_network_is_that_of_the_config(variant, few):
    recipe = recipe_named(variant)
    network = objective_of(recipe, few).network
    assert type(network) is type(recipe).model
    _, channels, size, _ = few.train.images.shape
    known = {"channels": channels, "size": size, "classes": recipe.classes(few.train)}
    if hasattr(recipe.network, "merges"):
        words = BytePairTokenizer.train(few.train.captions, recipe.vocabulary)
        known |= {"merges": words.flat, "known_words": tuple(sorted(words.known_words))}
    if type(recipe).__name__ == "CodePriorRecipe":
        known |= {"vocabulary": 20, "rows": 7, "columns": 7}
    if type(recipe).__name__ == "DALLERecipe":
        known |= {"codes": 20, "rows": 8, "columns": 8}
    wanted = {k: v for k, v in known.items() if hasattr(recipe.network, k)}
    assert network.config == replace(recipe.network, **wanted)
    if variant.startswith("masked"):
        c = recipe.network
        assert network.embed.out_features == network.norm.normalized_shape[0] == c.width
        assert network.project.in_features == c.width
        assert network.head.in_features == network.project.out_features == c.decoder_width


@every_variant
def test_it_trains_each_part_by_its_own_loss(variant, few, monkeypatch):
    """Two steps; in each, every phase's values are computed a second time just before, on a copy of the network."""
    recipe = recipe_named(variant)
    objective = objective_of(recipe, few)
    network, direct = objective.network, KINDS[type(recipe).__name__][0]
    names = {id(p): name for name, p in network.named_parameters()}
    seen: list[str] = []
    moved: set[str] = set()

    def checked(phase):
        def loss(batch, source):
            assert isinstance(batch, Batch)
            assert batch.images.dtype == torch.float32
            again = Rows(
                torch.Generator().set_state(source.generator.get_state()),
                source.start,
                source.stop,
                source.total,
            )
            other = copy.deepcopy(network)
            expected = direct(recipe, other, batch, again)[phase.name]()
            mine = [names[id(p)] for p in phase.parameters]
            weights = [other.get_parameter(name) for name in mine]
            slopes = torch.autograd.grad(expected["loss"], weights, materialize_grads=True)
            moved.update(name for name, g in zip(mine, slopes, strict=True) if g.any())
            found = phase.loss(batch, source)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-5)
            seen.append(phase.name)
            return found

        return replace(phase, loss=loss)

    spied = replace(objective, phases=tuple(checked(p) for p in objective.phases))
    before = copy.deepcopy(network.state_dict())
    for phase in objective.phases:
        part = network
        for name in PARTS.get(phase.name, ()):
            part = getattr(part, name)
        wanted = {id(p) for p in part.parameters() if p.requires_grad}
        assert {id(p) for p in phase.parameters} == wanted, phase.name
    trainer = Trainer(spied, few.train, recipe)
    for _ in trainer:
        pass
    everything = list(direct(recipe, network, None or _batch(few), Rows(derive(0), 0, 2, 2)))
    assert seen == everything * 2
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert changed == moved
    trained = {names[id(p)] for phase in objective.phases for p in phase.parameters}
    # Losses that only compare real with fake logits do not move what is added to both.
    assert trained - moved <= {"discriminator.head.bias"}


def _batch(few: Few) -> Batch:
    return few.train.batch_at(torch.arange(2))


@every_variant
def test_every_number_is_what_it_says(variant, few):
    recipe = recipe_named(variant)
    network = objective_of(recipe, few).network.eval()
    evaluator = Evaluator(samples=SAMPLES, batch_size=11)
    with torch.no_grad():
        whole = recipe.assemble(network, networks_of(recipe))
        found = recipe.evaluate(whole, evaluator, few)
        expected = KINDS[type(recipe).__name__][1](recipe, network, few)
    numbers = {(m.name, _of(m)): m.value for m in found}
    numbers |= {
        (f"{m.name} spread", m.of): m.spread for m in found if m.name == "linear probe accuracy"
    }
    # An untrained network hardly minds how noisy its images are; the errors say so in the fifth digit.
    close = dict.fromkeys(("reconstruction MSE", "reconstruction PSNR"), 2e-05)
    assert numbers == {
        (name, of): pytest.approx(value, rel=close.get(name, 2e-3), abs=close.get(name, 2e-3) / 10)
        for (name, of), value in expected.items()
    }
    units = {m.name: m.unit for m in found}
    assert all(units.get(name, "nats") == "nats" for name in ("−ELBO", "KL", "−log p"))
    places = {(m.data, m.split) for m in found}
    assert ("digits" if few is few_digits() else "scenes", "test") in places
    assert len(places) == 1 + (type(recipe).__name__ in ("CLIPRecipe", "DALLERecipe"))


def _of(m: Measurement) -> str:
    """What exactly was measured; of the split that not all recipes have, that too."""
    return f"{m.split}: {m.of}" if m.split == "composition" else m.of


@every_variant
def test_a_sheet_draws_images(variant, few):
    recipe = recipe_named(variant)
    objective = objective_of(recipe, few)
    if objective.sample is not None:
        drawn = objective.sample(objective.network.eval(), 3, PerImage(0, 0, 3))
        assert drawn.shape == (3, *few.train.images.shape[1:])
    whole = recipe.assemble(objective.network, networks_of(recipe))
    can = hasattr(whole, "sample") and getattr(whole, "can_sample", True)
    assert (objective.sample is not None) == can


@every_variant
def test_its_checkpoint_says_what_made_it(variant, few, tmp_path, monkeypatch):
    """From the recipe to the card and back, with every setting."""
    recipe = recipe_named(variant)
    found = [Measurement(name="a number", value=1.5)]
    monkeypatch.setattr(type(recipe), "evaluate", lambda *_: found)
    card = make_checkpoint(recipe, "mine", tmp_path, progress=False, log_every=1, samples=10)
    assert recipe_of(card) == recipe
    assert card.measurements[-1] == found[0]
    names = [p.name for p in objective_of(recipe, few).phases]
    losses = {m.name for m in card.measurements}
    if len(names) == 1:
        assert "training loss" in losses
    else:
        assert {f"training {name}/loss" for name in names} <= losses
