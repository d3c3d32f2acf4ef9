"""The text-to-image transformer of chapter 13."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from companion import checks
from companion.dalle.dalle import DALLE, DALLEConfig, TextToImage
from companion.data import ImageDataset, load
from companion.data.batch import Batch
from companion.data.sources import is_scenes
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.measurement import Measurement
from companion.metrics.scene_oracle import accuracies
from companion.nn.tokenizer import BytePairTokenizer
from companion.randomness import PerImage, Source
from companion.recipes.base import Recipe, Splits, captions_of
from companion.recipes.image_gpt import tokenizer_for
from companion.training import Objective, single_objective


@dataclass(frozen=True, kw_only=True)
class DALLERecipe(Recipe[DALLE]):
    """The transformer of chapter 13 over captions and image tokens: scenes of two coloured digits.

    Attributes:
        tokenizer: the checkpoint that turns images into tokens, by name or path.
        judge: the checkpoint that chooses among draws, by name or path; None for none.
        vocabulary: tokens of the text tokenizer, which is trained on the captions; at least the 256 bytes.
        temperature: of the draws that are measured.
        best_of: draws of each caption from which the judge chooses when that is measured.
    """

    model: ClassVar[type[nn.Module]] = DALLE

    data: str = "mnist_scenes"
    steps: int = 12_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    beta2: float = 0.99
    weight_decay: float = 0.01
    warmup: float = 0.02
    clip: float | None = 1.0
    ema: float | None = 0.999
    tokenizer: str = "vq-vae-scenes"
    judge: str | None = "clip"
    vocabulary: int = 320
    temperature: float = 1.0
    best_of: int = 8
    network: DALLEConfig = field(default_factory=DALLEConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(256, 10**6, vocabulary=self.vocabulary)
        checks.whole(1, 10_000, best_of=self.best_of)
        checks.number(0, temperature=self.temperature)

    def parents(self) -> Mapping[str, str]:
        judge = {} if self.judge is None else {"judge": self.judge}
        return {"tokenizer": self.tokenizer} | judge

    def config(
        self, dataset: ImageDataset, parents: Mapping[str, nn.Module] | None = None
    ) -> DALLEConfig:
        """Returns the network's config: the captions give its tokenizer, the parent the image tokens.

        Raises:
            ValueError: if the images have no captions, or the parent makes no tokens.
        """
        captions = captions_of(dataset)
        tokenizer = BytePairTokenizer.train(captions, self.vocabulary)
        config = replace(
            super().config(dataset, parents),
            merges=tokenizer.flat,
            known_words=tuple(sorted(tokenizer.known_words)),
        )
        if not parents:
            return config
        images = tokenizer_for(dataset, parents["tokenizer"], self.tokenizer)
        rows, columns = images.grid
        return replace(config, codes=images.vocabulary, rows=rows, columns=columns)

    def losses(self, network: DALLE, parents: Mapping[str, nn.Module]) -> Objective:
        whole = self.assemble(network, parents)

        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            images = batch.require_images()
            text = network.encode(batch.require_captions()).to(images.device)
            return network.loss(text, whole.codes(images))

        def sample(net: DALLE, n: int, source: Source) -> Tensor:
            return self.assemble(net, parents).sample(n, source)

        return single_objective(network, loss, sample=sample)

    def assemble(self, network: DALLE, parents: Mapping[str, nn.Module]) -> TextToImage:
        """Returns the transformer together with its tokenizer of images and its judge."""
        return TextToImage(network, parents["tokenizer"], parents.get("judge"))

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)
        network = DALLE(self.config(splits.train))
        for dataset in (splits.train, *splits.tests):
            # Each must fit into the text's positions.
            network.encode(list(dict.fromkeys(captions_of(dataset))))

    def evaluate(
        self, network: TextToImage, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        found = []
        for test in splits.tests:

            def nats(batch: Batch, source: PerImage) -> dict[str, Tensor]:
                text, image = network.nll(batch.require_images(), batch.require_captions())
                return {"text": text, "image": image}

            rows = evaluator.each(nats, test, "pairs")
            about = about_data(test, seed=evaluator.seed)
            found += [
                Measurement(
                    name=f"−log P({what})",
                    value=float(rows[part].double().mean()),
                    unit="nats",
                    better="lower",
                    **about,
                )
                for part, what in (("text", "text"), ("image", "image | text"))
            ]
        if is_scenes(self.data):
            for split in ("test", "composition"):
                found += self._read(network, evaluator, load(self.data, split))
        return found

    def _read(
        self, network: TextToImage, evaluator: Evaluator, scenes: ImageDataset
    ) -> list[Measurement]:
        """Measures how often the oracle reads in drawn scenes what their captions ask for."""
        n = min(evaluator.samples, len(scenes))
        captions = captions_of(scenes)[:n]
        found = self._agreement(evaluator, scenes[:n].floats(), captions, scenes, "real scenes")
        again = evaluator.each(
            lambda batch, _: network.tokenizer.detokenize(network.codes(batch.require_images())),
            scenes[:n],
            "reconstructions",
        )
        found += self._agreement(evaluator, again, captions, scenes, "reconstructions")
        for best_of in sorted({1, self.best_of if self.judge else 1}):
            drawn = evaluator.each(partial(self._draw, network, best_of), scenes[:n], "samples")
            of = "drawn" if best_of == 1 else f"drawn, best of {best_of}"
            found += self._agreement(evaluator, drawn, captions, scenes, of)
        return found

    def _draw(
        self, network: TextToImage, best_of: int, batch: Batch, source: PerImage
    ) -> Float[Tensor, "n c h w"]:
        return network.draw(
            batch.require_captions(), source, rerank=best_of, temperature=self.temperature
        )

    def _agreement(
        self,
        evaluator: Evaluator,
        images: Tensor,
        captions: tuple[str, ...],
        scenes: ImageDataset,
        of: str,
    ) -> list[Measurement]:
        about = about_data(scenes[: len(captions)], of, evaluator.seed)
        return [
            Measurement(name=f"accuracy of {what}", value=value, better="higher", **about)
            for what, value in accuracies(images, captions).items()
        ]
