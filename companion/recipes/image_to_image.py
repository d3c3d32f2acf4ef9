"""The small tasks of chapter 6, from one image to another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from companion.data import ImageDataset
from companion.data.batch import Batch
from companion.errors import unknown_name
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.gan import TASKS, ImageToImage, ImageToImageConfig
from companion.measurement import Measurement
from companion.metrics import fid, psnr, sharpness
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits
from companion.training import Objective, Phase


@dataclass(frozen=True, kw_only=True)
class ImageToImageRecipe(Recipe[ImageToImage]):
    """The small tasks of chapter 6: restoring or restyling an image by a content loss, a judge of pairs, or both.

    Attributes:
        task: "style" (thin strokes to bold), "super-resolution", "completion" or "denoising".
    """

    model: ClassVar[type[nn.Module]] = ImageToImage

    steps: int = 2000
    learning_rate: float = 1e-3
    beta1: float = 0.5
    task: Literal["style", "super-resolution", "completion", "denoising"] = "completion"
    network: ImageToImageConfig = field(default_factory=ImageToImageConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise unknown_name("task", self.task, TASKS)

    def losses(self, network: ImageToImage, parents: Mapping[str, nn.Module]) -> Objective:
        def judge(batch: Batch, source: Source) -> dict[str, Tensor]:
            return network.discriminator_loss(*TASKS[self.task](batch.require_images(), source))

        def answer(batch: Batch, source: Source) -> dict[str, Tensor]:
            return network.generator_loss(*TASKS[self.task](batch.require_images(), source))

        d, g = list(network.discriminator.parameters()), list(network.generator.parameters())
        phases = (Phase("discriminator", d, judge), Phase("generator", g, answer))
        return Objective(network, phases if self.network.adversarial else phases[1:])

    def evaluate(
        self, network: ImageToImage, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        return [m for test in splits.tests for m in self._answers(network, evaluator, test)]

    def _answers(
        self, network: ImageToImage, evaluator: Evaluator, test: ImageDataset
    ) -> list[Measurement]:
        """Measures the network's answers beside what was wanted."""
        extractor = evaluator.extractor_for(test)

        def rows(batch: Batch, source: Source) -> dict[str, Tensor]:
            given, wanted = TASKS[self.task](batch.require_images(), source)
            answer = network(given).float().clamp(-1, 1)
            found = {
                "psnr": psnr(answer, wanted, data_range=2.0),
                "sharpness": sharpness(answer),
                "wanted sharpness": sharpness(wanted),
            }
            if extractor is not None:
                found["features"] = extractor.features(answer)
                found["wanted features"] = extractor.features(wanted)
            return found

        row = evaluator.each(rows, test, self.task)
        means = {name: float(values.double().mean()) for name, values in row.items()}
        about = about_data(test, self.task, evaluator.seed)
        found = [
            Measurement(
                name="reconstruction PSNR",
                value=means["psnr"],
                unit="dB",
                better="higher",
                **about,
            ),
            Measurement(
                name="sharpness, share of real",
                value=means["sharpness"] / means["wanted sharpness"],
                **about,
            ),
        ]
        if extractor is not None:
            distance = fid(row["wanted features"], row["features"])
            found.append(Measurement(name="FID", value=distance, better="lower", **about))
        return found
