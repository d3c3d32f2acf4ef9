"""The one digit classifier behind every IS, FID, precision and recall on digits in the book.

It plays the part that Inception-v3 plays for photographs (Salimans et al. 2016; Heusel et al.
2017): a network trained once, then frozen, whose class probabilities feed the Inception Score and
whose last hidden layer, a spatial average of rectified activations like Inception's `pool3`, feeds
the Fréchet distance. Its numbers are comparable with each other and never with Inception's.
"""

from dataclasses import dataclass

from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from companion import checks


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


@dataclass(frozen=True, kw_only=True)
class DigitCNNConfig:
    """The settings of a `DigitCNN`.

    Attributes:
        width: channels of the first layers; the features have twice as many dimensions.
        classes: number of classes.

    Raises:
        ValueError: for a number below 1.
    """

    width: int = 32
    classes: int = 10

    def __post_init__(self) -> None:
        checks.whole(1, width=self.width, classes=self.classes)


class DigitCNN(nn.Module):
    """Five 3×3 convolutions, an average over positions, a linear layer; 28×28 grey images in [−1, 1].

    Batch normalisation uses the stored running statistics in evaluation mode, so an image's
    features do not depend on its neighbours in the batch; in training mode they would, and a
    Fréchet distance with them.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "digit-cnn".
    """

    Config = DigitCNNConfig

    def __init__(self, config: DigitCNNConfig | None = None) -> None:
        super().__init__()
        self.config = config or DigitCNNConfig()
        width = self.config.width
        self.trunk = nn.Sequential(
            _block(1, width),  # 28×28
            _block(width, width, stride=2),  # 14×14
            _block(width, 2 * width),
            _block(2 * width, 2 * width, stride=2),  # 7×7
            _block(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, self.config.classes)

    @property
    def feature_dim(self) -> int:
        """Number of dimensions of the features."""
        return self.head.in_features

    def features(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n d"]:
        """Returns the penultimate layer, 64 non-negative numbers per image at the standard width.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they are not grey 28×28 images.
        """
        checks.images(x, 1, 28, "digit classifier")
        return reduce(self.trunk(x), "n d h w -> n d", "mean")

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n classes"]:
        """Returns the logits of the classes."""
        return self.head(self.features(x))
