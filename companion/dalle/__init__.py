"""DALL-E: a tokenizer of captions, a discrete VAE as a tokenizer of images, and what models both."""

from typing import TYPE_CHECKING

from companion.faces import make_lazy

if TYPE_CHECKING:
    from companion.dalle.dalle import DALLE, DALLEConfig, TextToImage, attention_mask
    from companion.dalle.dvae import DVAE, DVAEConfig, logit_laplace_log_density
    from companion.nn.tokenizer import BytePairTokenizer

__all__ = [
    "DALLE",
    "DVAE",
    "BytePairTokenizer",
    "DALLEConfig",
    "DVAEConfig",
    "TextToImage",
    "attention_mask",
    "logit_laplace_log_density",
]

make_lazy(__name__)
