"""The transformers over pixels and over codes of chapters 7 and 12."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from companion import checks
from companion.data import ImageDataset
from companion.data.batch import Batch
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.image_gpt import (
    ImageGPT,
    ImageGPTConfig,
    ImageTokenizer,
    PixelGPT,
    PixelGPTConfig,
    TwoStage,
)
from companion.measurement import Measurement
from companion.randomness import PerImage, Source
from companion.recipes.base import Recipe, Splits
from companion.recipes.pixels import PixelsRecipe
from companion.training import Objective, single_objective


@dataclass(frozen=True, kw_only=True)
class ImageGPTRecipe(PixelsRecipe[PixelGPT]):
    """The pixel transformer of chapter 7: dynamically binarised MNIST in blocks of 2×2 pixels, exact nats."""

    model: ClassVar[type[nn.Module]] = PixelGPT

    steps: int = 10_000
    weight_decay: float = 0.01
    network: PixelGPTConfig = field(default_factory=PixelGPTConfig)

    def place_holder(self, settings: Mapping[str, Any]) -> int:
        usual, patch = super().place_holder(settings), settings["patch"]
        checks.whole(1, patch=patch)
        return patch if usual % patch else usual


@dataclass(frozen=True, kw_only=True)
class CodePriorRecipe(Recipe[ImageGPT]):
    """The transformer over the codes of a VQ-VAE, of chapter 12: what makes a tokenizer a generative model.

    Attributes:
        tokenizer: the checkpoint whose codes they are, by name or path.
        conditional: tell the network the label.
    """

    model: ClassVar[type[nn.Module]] = ImageGPT

    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    beta2: float = 0.99
    weight_decay: float = 0.01
    warmup: float = 0.02
    clip: float | None = 1.0
    ema: float | None = 0.999
    tokenizer: str = "vq-vae"
    conditional: bool = False
    network: ImageGPTConfig = field(default_factory=lambda: ImageGPTConfig(dropout=0.1))

    def parents(self) -> Mapping[str, str]:
        return {"tokenizer": self.tokenizer}

    def classes(self, dataset: ImageDataset) -> int:
        """Returns the number of the data's classes, for a conditional network."""
        return len(dataset.classes) if self.conditional else 0

    def config(
        self, dataset: ImageDataset, parents: Mapping[str, nn.Module] | None = None
    ) -> ImageGPTConfig:
        """Returns the network's config: the tokenizer says what the tokens are."""
        config = super().config(dataset, parents)
        if not parents:
            return config
        tokenizer = tokenizer_for(dataset, parents["tokenizer"], self.tokenizer)
        rows, columns = tokenizer.grid
        return replace(config, vocabulary=tokenizer.vocabulary, rows=rows, columns=columns)

    def losses(self, network: ImageGPT, parents: Mapping[str, nn.Module]) -> Objective:
        whole = self.assemble(network, parents)

        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            nats = whole.nll(batch.require_images(), batch.labels_for(network.config.classes))
            # Per token, so that the same learning rates and clips suit all grids.
            return {"loss": nats.mean() / network.length, "nats": nats.mean().detach()}

        def sample(net: ImageGPT, n: int, source: Source) -> Tensor:
            return self.assemble(net, parents).sample(n, source)

        return single_objective(network, loss, sample=sample)

    def assemble(self, network: ImageGPT, parents: Mapping[str, nn.Module]) -> TwoStage:
        """Returns the prior together with the decoder of its tokenizer."""
        return TwoStage(network, parents["tokenizer"])

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)

    def evaluate(
        self, network: TwoStage, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        def nats(batch: Batch, source: PerImage) -> Tensor:
            labels = batch.labels_for(network.prior.config.classes)
            return network.nll(batch.require_images(), labels)

        found = []
        for test in splits.labelled_tests if self.conditional else splits.tests:
            value = evaluator.mean(nats, test, "codes")
            about = about_data(test, seed=evaluator.seed)
            found.append(
                Measurement(name="−log P(codes)", value=value, unit="nats", better="lower", **about)
            )
        return found + evaluator.sample_quality(network.sample, splits.held_out)


def tokenizer_for(dataset: ImageDataset, parent: nn.Module, name: str) -> ImageTokenizer:
    """Returns a parent as the tokenizer of a data set's images.

    Args:
        dataset: the images.
        parent: the network.
        name: of its checkpoint, for messages.

    Raises:
        ValueError: if it does not turn images into codes, or takes others.
    """
    if not isinstance(parent, ImageTokenizer):
        raise ValueError(
            f"tokenizer {name!r} is a {type(parent).__name__}, which does not turn images into codes; name a VQ-VAE or "
            "a dVAE."
        )
    config: Any = parent.config
    takes = (config.channels, config.size, config.size)
    if takes != tuple(dataset.images.shape[1:]):
        raise ValueError(
            f"tokenizer {name!r} takes images of shape {takes}, but those of {dataset.name!r} have "
            f"{tuple(dataset.images.shape[1:])}; name a tokenizer that was trained on such images."
        )
    return parent
