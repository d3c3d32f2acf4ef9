"""Named, typed configurations: every checkpoint that ships comes from one of these.

A recipe says what network, which data and how to train; `RECIPES` holds one under each name. On the command line
`companion train NAME` runs it, and from Python

    from companion.recipes import RECIPES, make_checkpoint

    card = make_checkpoint(RECIPES["digit-cnn"], "digit-cnn", "runs/digit-cnn")
    print(card.value("accuracy"))

Settings, of the training and of the network alike, are changed by `RECIPES["digit-cnn"].replace(steps=100, width=16)`.
On one machine a recipe gives the same weights every time; between machines the last digits differ, since the order of
floating-point sums does.

Nothing heavy is imported before it is used: `RECIPES` knows its names and summaries without PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from companion.recipes.registry import RECIPES

if TYPE_CHECKING:
    from companion.recipes.autoencoder import AutoencoderRecipe
    from companion.recipes.base import Recipe, Splits, without_held_out
    from companion.recipes.clip import CLIPRecipe
    from companion.recipes.dalle import DALLERecipe
    from companion.recipes.denoising_autoencoder import DenoisingAutoencoderRecipe
    from companion.recipes.digit_cnn import DigitCNNRecipe
    from companion.recipes.dvae import DVAERecipe
    from companion.recipes.gan import GANRecipe
    from companion.recipes.image_gpt import CodePriorRecipe, ImageGPTRecipe
    from companion.recipes.image_to_image import ImageToImageRecipe
    from companion.recipes.making import (
        Interrupted,
        Unmeasured,
        load_assembled,
        make_checkpoint,
        recipe_of,
    )
    from companion.recipes.masked_autoencoder import MaskedAutoencoderRecipe
    from companion.recipes.pixelcnn import PixelCNNRecipe
    from companion.recipes.vae import VAERecipe
    from companion.recipes.vae_gan import VAEGANRecipe
    from companion.recipes.vq_vae import VQVAERecipe

__all__ = [
    "RECIPES",
    "AutoencoderRecipe",
    "CLIPRecipe",
    "CodePriorRecipe",
    "DALLERecipe",
    "DVAERecipe",
    "DenoisingAutoencoderRecipe",
    "DigitCNNRecipe",
    "GANRecipe",
    "ImageGPTRecipe",
    "ImageToImageRecipe",
    "Interrupted",
    "MaskedAutoencoderRecipe",
    "PixelCNNRecipe",
    "Recipe",
    "Splits",
    "Unmeasured",
    "VAEGANRecipe",
    "VAERecipe",
    "VQVAERecipe",
    "load_assembled",
    "make_checkpoint",
    "recipe_of",
    "without_held_out",
]

_HOME = {
    "AutoencoderRecipe": "autoencoder",
    "CLIPRecipe": "clip",
    "DVAERecipe": "dvae",
    "CodePriorRecipe": "image_gpt",
    "DALLERecipe": "dalle",
    "DenoisingAutoencoderRecipe": "denoising_autoencoder",
    "DigitCNNRecipe": "digit_cnn",
    "GANRecipe": "gan",
    "ImageGPTRecipe": "image_gpt",
    "ImageToImageRecipe": "image_to_image",
    "Interrupted": "making",
    "MaskedAutoencoderRecipe": "masked_autoencoder",
    "PixelCNNRecipe": "pixelcnn",
    "Recipe": "base",
    "Splits": "base",
    "Unmeasured": "making",
    "VAEGANRecipe": "vae_gan",
    "VAERecipe": "vae",
    "VQVAERecipe": "vq_vae",
    "load_assembled": "making",
    "make_checkpoint": "making",
    "recipe_of": "making",
    "without_held_out": "base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"companion.recipes.{_HOME[name]}"), name)
