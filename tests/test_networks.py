"""What holds for every network: its config, its door, its samples, and the outputs of the shipped checkpoints."""

import dataclasses
import json
import math
import typing
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from companion import load_checkpoint
from companion.autoencoder import Autoencoder, fit_gaussian, sample
from companion.checkpoints import checkpoint_names
from companion.clip import CLIP
from companion.dalle.dalle import DALLE
from companion.dalle.dvae import DVAE, DVAEConfig
from companion.denoising_autoencoder import DenoisingAutoencoder, DenoisingAutoencoderConfig
from companion.gan import GAN, GANConfig, ImageToImage
from companion.image_gpt import ImageGPT, PixelGPT, PixelGPTConfig
from companion.masked_autoencoder import MaskedAutoencoder
from companion.metrics.digit_cnn import DigitCNN
from companion.nn import CausalTransformer, TransformerConfig
from companion.pixelcnn import PixelCNN, PixelCNNConfig
from companion.randomness import Rows, initialisation
from companion.vae import VAE, VAEConfig
from companion.vae_gan import VAEGAN, VAEGANConfig
from companion.vq_vae import VQVAE, VQVAEConfig

NETWORKS = [
    Autoencoder,
    CLIP,
    CausalTransformer,
    DALLE,
    DVAE,
    DenoisingAutoencoder,
    DigitCNN,
    GAN,
    ImageGPT,
    ImageToImage,
    MaskedAutoencoder,
    PixelCNN,
    PixelGPT,
    VAE,
    VAEGAN,
    VQVAE,
]
IMAGES = [kind for kind in NETWORKS if kind not in (CausalTransformer, DALLE, ImageGPT)]
NEEDED = {TransformerConfig: {"vocabulary": 7, "context": 6}}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Configs ---------------------------------------------------------------------------------------------------------


def unchecked(kind, **changes):
    """Runs a config's own checks, without those of the types that the tests put around every constructor."""
    config = object.__new__(kind)
    for field in dataclasses.fields(kind):
        default = NEEDED.get(kind, {}).get(field.name, field.default)
        object.__setattr__(config, field.name, changes.get(field.name, default))
    config.__post_init__()
    return config


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_config_is_frozen_and_says_everything_once(kind):
    config = kind.Config(**NEEDED.get(kind.Config, {}))
    with initialisation(0):
        network = kind(config)
    assert network.config is config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3
    if kind is not CausalTransformer:
        assert kind().config == config
        with pytest.raises(TypeError):
            kind.Config(1)
    # No setting of a network lives in a second place; a game with any two networks has its own, and an autoencoder's
    # base class needs the length of its code.
    shared = {"latent_dim"} if kind is Autoencoder else set()
    if kind is GAN:
        shared = {"latent_dim", "classes", "loss", "gradient_penalty", "r1"}
    assert {f.name for f in dataclasses.fields(config)} & set(vars(network)) <= shared


def wrong_values(field):
    """Values that no field of its type takes."""
    kinds = typing.get_args(field.type) or (field.type,)
    if isinstance(kinds[0], str):
        return ["", "hing", None, 3]
    if kinds[0] is bool:
        return [1, "yes", None]
    if kinds[0] is int:
        return [2.5, True, "8", None, math.nan, -99]
    return [math.nan, math.inf, "1", True, *([] if type(None) in kinds else [None])]


@pytest.mark.parametrize(
    ("kind", "field"),
    [(k.Config, f) for k in NETWORKS for f in dataclasses.fields(k.Config)],
    ids=lambda x: getattr(x, "name", getattr(x, "__name__", None)),
)
def test_every_field_refuses_what_cannot_be(kind, field):
    for value in wrong_values(field):
        with pytest.raises(ValueError, match=rf"\b{field.name}\b"):
            unchecked(kind, **{field.name: value})


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_config_survives_json(kind):
    config = kind.Config(**NEEDED.get(kind.Config, {}))
    text = json.dumps(dataclasses.asdict(config))
    assert msgspec.convert(json.loads(text), kind.Config, strict=True) == config


def test_the_names_of_settings_do_not_depend_on_the_network():
    """One word for one thing."""
    names = {f.name for kind in NETWORKS for f in dataclasses.fields(kind.Config)}
    assert not names & {"latent", "share", "network", "normalise", "precision", "likeness"}
    sizes = [kind for kind in IMAGES if kind is not DigitCNN]
    for kind in sizes:
        assert {"channels", "size"} <= {f.name for f in dataclasses.fields(kind.Config)}


# --- The door --------------------------------------------------------------------------------------------------------

DOORS = """
import torch
from tests.test_networks import IMAGES, doors
for kind in IMAGES:
    for name, door in doors(kind()):
        for x in (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2, 1, 28, 28, dtype=torch.int64)):
            try:
                door(x)
                print(kind.__name__, name, "takes", x.dtype)
            except TypeError as error:
                assert "companion.data.to_float" in str(error), (kind, name, error)
        for shape in ((2, 1, 28, 27), (2, 2, 28, 28), (2, 28, 28)):
            try:
                door(torch.zeros(shape))
                print(kind.__name__, name, "takes", shape)
            except ValueError as error:
                assert "(1, 28, 28)" in str(error), (kind, name, error)
"""


def doors(network):
    """Every method that takes images and nothing that depends on their shape."""
    names = ("forward", "encode", "features", "reconstruct", "posterior")
    found = [(n, getattr(network, n)) for n in names if hasattr(network, n)]
    if isinstance(network, GAN):
        found = [("discriminator", network.discriminator)]
    if isinstance(network, MaskedAutoencoder):
        masking = network.masking(2, seeded())
        found = [(n, d) for n, d in found if n in ("encode", "features")]
        found += [("forward", lambda x: network(x, masking))]
    if isinstance(network, PixelGPT | PixelCNN):
        found = [("nll", lambda x: network.nll(x, seeded()))]
    if isinstance(network, CLIP):
        found = [("encode_image", network.encode_image)]
    if hasattr(network, "tokenize") and not isinstance(network, CLIP):
        found += [("tokenize", network.tokenize)]
    if isinstance(network, VAEGAN):
        found = [(n, d) for n, d in found if n != "forward"]
        found += [("discriminator", network.discriminator)]
    return found


def test_bytes_and_wrong_shapes_are_refused_at_every_door(afresh):
    """Where no check of types by the tests comes first."""
    afresh(DOORS)


# --- Samples ---------------------------------------------------------------------------------------------------------


def samplers():
    with initialisation(0):
        gan = GAN(GANConfig(generator_width=4, discriminator_width=4)).eval()
        conditional = GAN(GANConfig(generator_width=4, discriminator_width=4, classes=3)).eval()
        vae = VAE(VAEConfig(width=2, latent_dim=3, classes=2)).eval()
        vae_gan = VAEGAN(VAEGANConfig(encoder_width=2, decoder_width=2, discriminator_width=2))
        denoiser = DenoisingAutoencoder(DenoisingAutoencoderConfig(width=2, latent_dim=3)).eval()
        plain = Autoencoder().eval()
        gpt = PixelGPT(PixelGPTConfig(width=8, layers=1, heads=2, patch=4, classes=2)).eval()
    density = fit_gaussian(torch.randn(50, 32, generator=seeded(1)))
    return {
        "gan": gan.sample,
        "conditional gan": conditional.sample,
        "pixel transformer": gpt.sample,
        "pixelcnn": PixelCNN(PixelCNNConfig(width=4, layers=1, classes=2)).eval().sample,
        "vq-vae": VQVAE(VQVAEConfig(width=4)).eval().sample,
        "dvae": DVAE(DVAEConfig(width=4)).eval().sample,
        "vae": vae.sample,
        "vae-gan": vae_gan.eval().sample,
        "denoiser": lambda *a, **k: denoiser.sample(*a, **k, levels=4),
        "autoencoder": lambda *a, **k: sample(plain, density, *a, **k),
    }


@pytest.mark.parametrize("name", list(samplers()))
def test_an_image_is_a_function_of_the_seed_and_its_number_alone(name):
    draw = samplers()[name]
    many, few = draw(6, seed=3), draw(2, seed=3)
    torch.testing.assert_close(few, many[:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(many[0], many[1])
    assert not torch.allclose(draw(2, seed=4), few)
    torch.testing.assert_close(draw(6, seed=3), many, rtol=0, atol=0)
    assert not many.requires_grad
    assert many.abs().max() <= 1


@pytest.mark.parametrize("name", list(samplers()))
def test_samples_take_a_source_or_a_seed_and_never_both(name):
    draw = samplers()[name]
    whole = draw(4, seeded(5))
    torch.testing.assert_close(draw(4, source=seeded(5)), whole, rtol=0, atol=0)
    part = draw(2, Rows(seeded(5), 1, 3, 4))
    torch.testing.assert_close(part, whole[1:3], rtol=1e-4, atol=1e-4)
    for arguments in ({}, {"source": seeded(), "seed": 0}):
        with pytest.raises(ValueError, match="either seed"):
            draw(2, **arguments)


# --- The shipped checkpoints -----------------------------------------------------------------------------------------

REFERENCE = Path(__file__).parent / "checkpoints" / "reference.json"


@torch.no_grad()
def outputs(name):
    """What a shipped network makes of four images of noise."""
    network = load_checkpoint(name)
    x = torch.rand(4, 1, 28, 28, generator=seeded(1)) * 2 - 1
    if name == "autoencoder":
        return {"codes": network.encode(x), "images": network(x)}
    if name == "denoising-autoencoder":
        drawn = network.sample(2, seeded(7), levels=5)
        return {"codes": network.encode(x), "images": network(x), "samples": drawn}
    if name == "digit-cnn":
        return {"features": network.features(x), "logits": network(x)}
    if name == "gan":
        return {"samples": network.sample(4, seeded(7)), "logits": network.discriminator(x)}
    if name == "masked-autoencoder":
        guess = network(x, network.masking(4, seeded(7)))
        errors = network.errors(x, seeded(7))
        return {"features": network.features(x), "patches": guess, "errors": errors}
    if name == "vae":
        bound = network.elbo(x, seeded(7))
        codes = torch.cat(network.encode(x), dim=1)
        found = {"codes": codes, "images": network(x), "samples": network.sample(4, seeded(7))}
        return found | {
            "likelihood": bound.log_likelihood,
            "kl": bound.kl,
            "iwae": network.iwae(x, 5, seeded(7)),
        }
    codes = torch.cat(network.encode(x), dim=1)
    losses = [network.encoder_loss, network.decoder_loss, network.discriminator_loss]
    found = {
        "codes": codes,
        "images": network.reconstruct(x),
        "samples": network.sample(4, seeded(7)),
    }
    found |= {"losses": torch.stack([loss(x, seeded(7))["loss"] for loss in losses])}
    return found | {"logits": network.discriminator(x)}


def projections(x):
    """Three numbers on which every entry of a tensor has its say."""
    directions = torch.randn(x.numel(), 3, generator=seeded(9), dtype=torch.float64)
    return (x.flatten().double() @ directions / math.sqrt(x.numel())).tolist()


@pytest.mark.parametrize("name", checkpoint_names())
def test_shipped_checkpoints_compute_what_they_always_did(name):
    """The numbers were recorded before the layers were put together from shared parts."""
    stated = json.loads(REFERENCE.read_text())[name]
    found = {key: projections(x) for key, x in outputs(name).items()}
    assert set(found) == set(stated)
    for key, value in found.items():
        assert value == pytest.approx(stated[key], rel=1e-3, abs=1e-4), key


def test_every_shipped_network_is_covered():
    assert set(json.loads(REFERENCE.read_text())) == set(checkpoint_names())
    assert all(isinstance(load_checkpoint(name), nn.Module) for name in checkpoint_names())
