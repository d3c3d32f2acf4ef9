"""CLIP of chapter 13, which ranks what DALL-E draws."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from companion import checks
from companion.clip import CLIP, CLIPConfig
from companion.data import ImageDataset, load
from companion.data.batch import Batch
from companion.data.sources import is_scenes
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.measurement import Measurement
from companion.nn.tokenizer import BytePairTokenizer
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits, captions_of
from companion.training import Objective, single_objective

# A caption is found among so many, and so is an image.
CANDIDATES = 64


@dataclass(frozen=True, kw_only=True)
class CLIPRecipe(Recipe[CLIP]):
    """CLIP of chapter 13: a transformer over patches and one over captions, one space for both.

    Attributes:
        vocabulary: tokens of the text tokenizer, which is trained on the captions; at least the 256 bytes.
    """

    model: ClassVar[type[nn.Module]] = CLIP

    data: str = "mnist_scenes"
    steps: int = 4_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float | None = 1.0
    vocabulary: int = 320
    network: CLIPConfig = field(default_factory=CLIPConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(256, 10**6, vocabulary=self.vocabulary)

    def place_holder(self, settings: Mapping[str, Any]) -> int:
        usual, patch = super().place_holder(settings), settings["patch"]
        checks.whole(1, patch=patch)
        return patch if usual % patch else usual

    def config(
        self, dataset: ImageDataset, parents: Mapping[str, nn.Module] | None = None
    ) -> CLIPConfig:
        """Returns the network's config, with a tokenizer trained on the captions.

        Raises:
            ValueError: if the data have no captions, or images that the network does not take.
        """
        tokenizer = BytePairTokenizer.train(captions_of(dataset), self.vocabulary)
        return replace(
            super().config(dataset, parents),
            merges=tokenizer.flat,
            known_words=tuple(sorted(tokenizer.known_words)),
        )

    def losses(self, network: CLIP, parents: Mapping[str, nn.Module]) -> Objective:
        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            return network.loss(batch.require_images(), batch.require_captions())

        return single_objective(network, loss)

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        network = CLIP(self.config(splits.train))
        for dataset in (splits.train, *splits.tests):
            for caption in dict.fromkeys(captions_of(dataset)):
                network.tokens_of(caption)
        if len(splits.held_out) < CANDIDATES:
            raise ValueError(
                f"captions are looked for among {CANDIDATES} images, but there are only {len(splits.held_out)} to "
                "measure on. Measure on more."
            )

    def evaluate(self, network: CLIP, evaluator: Evaluator, splits: Splits) -> list[Measurement]:
        tests = list(splits.tests)
        if is_scenes(self.data):
            tests.append(load(self.data, "composition"))
        return [m for test in tests for m in retrieval(network, evaluator, test)]


def retrieval(network: CLIP, evaluator: Evaluator, test: ImageDataset) -> list[Measurement]:
    """Measures how often the right one of 64 captions, and of 64 images, has the highest score.

    The images are taken 64 at a time, in their order; what is left over is left out. An equal caption of another image
    is right as well.
    """

    def features(batch: Batch, source: Source) -> dict[str, Tensor]:
        return {
            "image": network.encode_image(batch.require_images()),
            "text": network.encode_text(batch.require_captions()),
        }

    rows = evaluator.each(features, test, "retrieval")
    captions = captions_of(test)
    right = {"caption of 64": 0, "image of 64": 0}
    groups = len(test) // CANDIDATES
    for group in range(groups):
        mine = slice(group * CANDIDATES, (group + 1) * CANDIDATES)
        scores, names = rows["image"][mine] @ rows["text"][mine].T, captions[mine]
        for name, best in (
            ("caption of 64", scores.argmax(dim=1)),
            ("image of 64", scores.argmax(dim=0)),
        ):
            right[name] += sum(names[b] == names[i] for i, b in enumerate(best.tolist()))
    return [
        Measurement(
            name="retrieval accuracy",
            value=count / (groups * CANDIDATES),
            better="higher",
            **(about_data(test, name)),
        )
        for name, count in right.items()
    ]
