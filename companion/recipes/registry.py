"""Which recipes there are, and where; nothing heavy is imported before one of them is asked for.

To add a model, write its file beside this one and add its entry here.
"""

import importlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from companion.errors import unknown_name

if TYPE_CHECKING:
    from companion.recipes.base import Recipe


@dataclass(frozen=True)
class Entry:
    """Where a recipe comes from.

    Attributes:
        module: which defines its class.
        kind: the class's name there.
        summary: what it trains, in one line.
        settings: in which a variant differs from the defaults of its class; names of the recipe or its network.
    """

    module: str
    kind: str
    summary: str
    settings: dict[str, Any] = field(default_factory=dict)

    def load(self) -> "Recipe":
        """Imports the module and makes the recipe."""
        kind = getattr(importlib.import_module(f"companion.recipes.{self.module}"), self.kind)
        return kind().replace(**self.settings)


ENTRIES: dict[str, Entry] = {
    "autoencoder": Entry(
        "autoencoder",
        "AutoencoderRecipe",
        "The autoencoder of chapter 8: the least squared error through a bottleneck.",
    ),
    "clip": Entry(
        "clip",
        "CLIPRecipe",
        "CLIP of chapter 13: a transformer over patches and one over captions, one space for both.",
    ),
    "dalle": Entry(
        "dalle",
        "DALLERecipe",
        "The text-to-image transformer of chapter 13: captions and image tokens of coloured scenes in one sequence.",
    ),
    "denoising-autoencoder": Entry(
        "denoising_autoencoder",
        "DenoisingAutoencoderRecipe",
        "The denoising autoencoder of chapter 9: Gaussian noise of all levels in a range, one network that is not "
        "told which.",
    ),
    "digit-cnn": Entry(
        "digit_cnn",
        "DigitCNNRecipe",
        "The digit classifier behind every FID on digits: eight passes over MNIST, augmented by small affine maps.",
    ),
    "dvae": Entry(
        "dvae",
        "DVAERecipe",
        "The discrete VAE of chapter 13, which cuts images into tokens: Gumbel-softmax codes, logit-Laplace pixels.",
    ),
    "gan": Entry(
        "gan",
        "GANRecipe",
        "The generative adversarial network of chapter 6: DCGAN's networks, spectral normalisation, the hinge loss.",
    ),
    "gan-cifar10": Entry(
        "gan",
        "GANRecipe",
        "As gan, but on the colour images of CIFAR-10: wider networks, 100,000 steps, a generator's turn at every "
        "fifth.",
        {
            "data": "cifar10",
            "steps": 100_000,
            "learning_rate": 2e-4,
            "beta1": 0.0,
            "beta2": 0.9,
            "latent_dim": 128,
            "generator_width": 128,
            "discriminator_width": 128,
            "generator_every": 5,
        },
    ),
    "image-gpt": Entry(
        "image_gpt",
        "ImageGPTRecipe",
        "The pixel transformer of chapter 7: dynamically binarised MNIST in blocks of 2×2 pixels, exact nats.",
    ),
    "image-gpt-cifar10": Entry(
        "image_gpt",
        "ImageGPTRecipe",
        "As image-gpt, but on the colour images of CIFAR-10, a pixel of 512 colours a token: wider and deeper.",
        {
            "data": "cifar10",
            "steps": 200_000,
            "batch_size": 128,
            "learning_rate": 5e-4,
            "ema": 0.9999,
            "patch": 1,
            "levels": 8,
            "width": 512,
            "layers": 24,
            "heads": 8,
            "init_std": 0.02,
            "dropout": 0.1,
        },
    ),
    "image-to-image": Entry(
        "image_to_image",
        "ImageToImageRecipe",
        "The small tasks of chapter 6: restoring or restyling an image by a content loss, a judge of pairs, or both.",
    ),
    "masked-autoencoder": Entry(
        "masked_autoencoder",
        "MaskedAutoencoderRecipe",
        "The masked autoencoder of chapter 9: patches of 4×4 pixels, three quarters of them hidden.",
    ),
    "pixelcnn": Entry(
        "pixelcnn",
        "PixelCNNRecipe",
        "The gated PixelCNN of chapter 7: dynamically binarised MNIST, a softmax for every pixel, exact nats.",
    ),
    "pixelcnn-cifar10": Entry(
        "pixelcnn",
        "PixelCNNRecipe",
        "As pixelcnn, but on the colour images of CIFAR-10: a mixture of discretised logistics, wider and deeper.",
        {
            "data": "cifar10",
            "steps": 300_000,
            "batch_size": 64,
            "learning_rate": 4e-4,
            "beta2": 0.999,
            "ema": 0.9999,
            "width": 192,
            "layers": 18,
            "likelihood": "logistic-mixture",
            "levels": 256,
            "dropout": 0.5,
        },
    ),
    "code-prior": Entry(
        "image_gpt",
        "CodePriorRecipe",
        "The prior of chapter 12: a transformer over the codes of a VQ-VAE, with whose decoder it draws images.",
    ),
    "vae": Entry(
        "vae",
        "VAERecipe",
        "The variational autoencoder of chapter 10: dynamically binarised MNIST, bounds in nats.",
    ),
    "vae-gan": Entry(
        "vae_gan",
        "VAEGANRecipe",
        "The VAE-GAN of chapter 11: an autoencoder whose reconstructions are judged by a discriminator's features.",
    ),
    "vae-gan-pixels": Entry(
        "vae_gan",
        "VAEGANRecipe",
        "As vae-gan, with the same networks but judged by pixels alone: what chapter 11 compares with.",
        {
            "features": False,
            "adversarial": 0.0,
            "gamma": 1.0,
            "learning_rate": 2e-3,
            "beta1": 0.9,
            "beta2": 0.999,
        },
    ),
    "vq-vae": Entry(
        "vq_vae",
        "VQVAERecipe",
        "The vector-quantised autoencoder of chapter 12: digits as 49 whole numbers.",
    ),
    "vq-vae-cifar10": Entry(
        "vq_vae",
        "VQVAERecipe",
        "As vq-vae, but on the colour images of CIFAR-10: 64 codes of 512, a wider and deeper network.",
        {
            "data": "cifar10",
            "steps": 100_000,
            "batch_size": 128,
            "learning_rate": 1e-3,
            "width": 256,
            "code_dim": 64,
            "blocks": 6,
        },
    ),
    "vq-vae-scenes": Entry(
        "vq_vae",
        "VQVAERecipe",
        "As vq-vae, but on captioned colour scenes of 32×32 pixels, in 64 codes.",
        {"data": "mnist_scenes"},
    ),
}


class Recipes(MutableMapping[str, "Recipe"]):
    """The recipes by name. Each is made when it is first asked for; a recipe of your own can be put in.

    Args:
        entries: where those come from that are made here.
    """

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = dict(entries)
        self._made: dict[str, Recipe] = {}

    def __getitem__(self, name: str) -> "Recipe":
        if name not in self._made:
            self._made[name] = self._entries[name].load()
        return self._made[name]

    def __setitem__(self, name: str, recipe: "Recipe") -> None:
        self._made[name] = recipe

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._made.pop(name, None)
        self._entries.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._entries, *self._made}))

    def __len__(self) -> int:
        return len({*self._entries, *self._made})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._made

    def summary(self, name: str) -> str:
        """Says in one line what a recipe trains; imports nothing for those of the book."""
        if name in self._entries:
            return self._entries[name].summary
        return (type(self._made[name]).__doc__ or "").strip().splitlines()[0]

    def find(self, name: str, remedy: str = "") -> "Recipe":
        """Returns the recipe of a name that a user gave.

        Raises:
            ValueError: if there is none; the message suggests the nearest.
        """
        if name not in self:
            raise unknown_name("recipe", name, self, remedy)
        return self[name]


RECIPES = Recipes(ENTRIES)
