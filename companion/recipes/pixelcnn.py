"""The convolutional autoregressive networks of chapter 7."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from companion.pixelcnn import PixelCNN, PixelCNNConfig
from companion.recipes.pixels import PixelsRecipe


@dataclass(frozen=True, kw_only=True)
class PixelCNNRecipe(PixelsRecipe[PixelCNN]):
    """The gated PixelCNN of chapter 7: dynamically binarised MNIST, exact nats."""

    model: ClassVar[type[nn.Module]] = PixelCNN

    steps: int = 13_000
    network: PixelCNNConfig = field(default_factory=PixelCNNConfig)
