"""Named, typed configurations: every checkpoint that ships comes from one of these.

A recipe says what network, which data and how to train; `RECIPES` holds one under each name. On the command line
`companion train NAME` runs it, and from Python

    from companion.recipes import RECIPES, make_checkpoint

    card = make_checkpoint(RECIPES["digit-cnn"], "digit-cnn", "runs/digit-cnn")
    print(card.metrics)

Settings are changed with `dataclasses.replace(RECIPES["digit-cnn"], steps=100)`. On one machine a recipe gives
the same weights every time; between machines the last digits differ, since the order of floating-point sums does.
"""

import inspect
import math
import platform
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from companion.autoencoder import Autoencoder, fit_mixture
from companion.autoencoder import sample as sample_codes
from companion.checkpoints import Card, half_precision, save_checkpoint
from companion.data import DATASETS, DataError, ImageDataset, folder, load, to_float
from companion.data.digits import is_held_out
from companion.denoising_autoencoder import DenoisingAutoencoder, corrupt
from companion.distributions import BYTE, bits_per_dimension
from companion.errors import unknown_name
from companion.evaluation import Evaluator
from companion.gan import GAN, TASKS, ImageToImage
from companion.masked_autoencoder import MaskedAutoencoder
from companion.metrics import fid, psnr, sharpness
from companion.metrics.digit_cnn import DigitCNN
from companion.metrics.features import digit_features
from companion.randomness import Source, derive, initialisation
from companion.training import (
    Batch,
    Objective,
    Phase,
    Trainer,
    TrainingSettings,
    minimise,
    random_affine,
    run,
)
from companion.vae import VAE
from companion.vae_gan import VAEGAN

Root = str | PathLike[str] | None
Network = TypeVar("Network", bound=nn.Module)


def without_held_out(train: ImageDataset) -> ImageDataset:
    """Returns a set of digits without the book's 1,000 held-out ones, found by content."""
    return train[~is_held_out(train.images)]


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingSettings, ABC):
    """What to train, on which data, and how; each model of the book has a subclass with its own settings.

    Attributes:
        data: a data set's name, or the path of a folder or zip with images of your own.
        image_size: rows and columns that images of your own are cut and resized to; data sets keep theirs.
        channels: 1 makes images of your own grey, 3 coloured.
    """

    data: str = "mnist"
    image_size: int = 28
    channels: Literal[1, 3] = 1

    @abstractmethod
    def build(self, dataset: ImageDataset) -> Objective:
        """Returns the network, initialised at random, with its losses.

        `objective` calls this where torch's global generator is seeded, so constructors need no seed.
        """

    @abstractmethod
    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        """Measures what applies to this model, on images that it has not seen.

        Args:
            network: trained, on the evaluator's device, in evaluation mode.
            evaluator: has the measures, the number of samples, the seed, and the processes to share the work.
            root: folder of downloaded data sets, as for `companion.data.load`.

        Returns:
            Numbers by name. Names start with the data set and split where there could be a doubt.
        """

    def objective(self, dataset: ImageDataset) -> Objective:
        """Returns what `build` does, with weights that are a function of the recipe's seed."""
        with initialisation(self.seed):
            return self.build(dataset)

    @property
    def own_images(self) -> bool:
        """Whether `data` is the path of a folder or zip rather than a data set's name."""
        return self.data not in DATASETS and (
            "/" in self.data or "\\" in self.data or Path(self.data).expanduser().exists()
        )

    def training_data(self, root: Root = None) -> ImageDataset:
        """Returns the images to train on; MNIST comes without the book's 1,000 held-out digits.

        Raises:
            ValueError: if there is neither a data set nor a folder of that name; the nearest is suggested.
            FileNotFoundError, DataError: as from `companion.data.load` and `companion.data.folder`.
        """
        self._require_known()
        if self.own_images:
            return folder(self.data, size=self.image_size, channels=self.channels)
        found = load(self.data, "train", root=root)
        return without_held_out(found) if self.data == "mnist" else found

    def _require_known(self) -> None:
        if not self.own_images and self.data not in DATASETS:
            remedy = "A folder or zip of images works too; write its path with a slash: ./name."
            raise unknown_name("data", self.data, DATASETS, remedy)

    def held_out(self, root: Root = None) -> ImageDataset:
        """Returns the images to measure on.

        For digits, whether `digits` or `mnist`, these are the book's 1,000; for the other data sets their test
        split; for images of your own, which have no split, those same images.

        Raises:
            ValueError, FileNotFoundError, DataError: as from `training_data`.
        """
        self._require_known()
        if self.own_images:
            return self.training_data(root)
        if self.data in ("digits", "mnist"):
            return load("digits", "test")
        return load(self.data, "test", root=root)

    def test_sets(self, root: Root = None) -> list[ImageDataset]:
        """Returns `held_out` and, where there is one, `full_test`."""
        full = self.full_test(root)
        return [self.held_out(root)] + ([] if full is None else [full])

    def full_test(self, root: Root = None) -> ImageDataset | None:
        """Returns MNIST's own 10,000 test digits where `data` is "mnist" and they are on disk; nothing is fetched.

        A checkpoint that ships can so be measured offline, on the held-out digits alone.
        """
        if self.data != "mnist":
            return None
        try:
            return load("mnist", "test", root=root, download=False)
        except DataError:
            return None


# --- From a recipe to a checkpoint --------------------------------------------------------------------------------


class Interrupted(Exception):
    """A training was stopped by a signal and has saved its state.

    Attributes:
        step: steps taken so far.
        signal: the signal's number.
    """

    def __init__(self, step: int, total: int, signal: int) -> None:
        super().__init__(f"Stopped at step {step:,} of {total:,}; the state is saved.")
        self.step, self.signal = step, signal


def make_checkpoint(
    recipe: Recipe,
    name: str,
    directory: str | PathLike[str],
    *,
    root: Root = None,
    fabric: Fabric | None = None,
    resume: bool = False,
    samples: int = 1000,
    save_every: int = 1000,
    log_every: int = 50,
    sample_every: int = 0,
    progress: bool = True,
    tensorboard: bool = False,
) -> Card:
    """Trains by a recipe, measures the weights as they will be stored, and writes `NAME.safetensors` and its card.

    Args:
        recipe: what to train, on what, and how.
        name: of the checkpoint.
        directory: of the run: states, log, sample sheets, and in the end the checkpoint.
        root: folder of downloaded data sets, as for `companion.data.load`.
        fabric: the processes, as `launch` gives them; by default this one alone, on the default device.
        resume: go on with the run in that folder.
        samples: images drawn to evaluate the network, if it is a generative one.
        save_every: steps between saved states.
        log_every: steps between lines of the log.
        sample_every: steps between sample sheets; 0 makes none.
        progress: whether to show a progress bar.
        tensorboard: whether to log for TensorBoard too.

    Returns:
        The checkpoint's card.

    Raises:
        Interrupted: if Ctrl-C or SIGTERM stopped the training; its state is saved.
        DivergedError: if the loss became NaN or infinite.
        RunError, StateError, DiskFullError: as from `companion.training.run`.
        ValueError, OSError: if the data or the settings do not allow the training.
    """
    dataset = recipe.training_data(root)
    trainer = Trainer(recipe.objective(dataset), dataset, recipe, fabric)
    fabric = trainer.fabric
    outcome = run(
        trainer,
        Path(directory),
        resume=resume,
        save_every=save_every,
        log_every=log_every,
        sample_every=sample_every,
        progress=progress,
        tensorboard=tensorboard,
    )
    if outcome.interrupted:
        raise Interrupted(outcome.step, outcome.total, outcome.signal)
    network = trainer.network.eval()
    network.load_state_dict(half_precision(network))
    evaluator = Evaluator(fabric, samples=samples)
    card = Card(
        name=name,
        model=f"{type(network).__module__}.{type(network).__qualname__}",
        config=_config(network),
        recipe={"name": _registered(recipe, name)} | asdict(recipe),
        data=_provenance(recipe, dataset, root),
        steps=outcome.step,
        seed=recipe.seed,
        seconds=round(outcome.seconds, 1),
        device=_device(fabric),
        metrics=finite(
            {f"training {k}": v for k, v in outcome.losses.items()}
            | recipe.evaluate(network, evaluator, root)
        ),
    )
    if fabric.global_rank == 0:
        card = save_checkpoint(network, card, directory)
    fabric.barrier()
    return card


def recipe_of(card: Card) -> Recipe:
    """Returns the recipe that a checkpoint's card names, with the card's settings.

    Settings that the recipe has no more are left out: they tell how the network was trained then, not how it is
    measured now.

    Raises:
        ValueError: if there is no recipe of that name.
    """
    name = str(card.recipe.get("name"))
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES, f"The card of {card.name!r} names it.")
    recipe = RECIPES[name]
    known = {f.name for f in fields(recipe)}
    settings = {k: v for k, v in card.recipe.items() if k in known}
    # JSON knows lists only.
    return replace(
        recipe, **{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    )


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """Returns metrics as JSON can hold them: None stands for what is not finite, like the PSNR of equal images."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _config(network: nn.Module) -> dict[str, Any]:
    """Returns the keyword arguments that a network was built with; networks keep them as attributes."""
    names = [n for n in inspect.signature(type(network)).parameters if n != "self"]
    return {name: getattr(network, name) for name in names}


def _registered(recipe: Recipe, name: str) -> str:
    """Returns the name under which `RECIPES` holds recipes of this kind, the given one first."""
    names = [k for k, known in RECIPES.items() if type(known) is type(recipe)]
    return name if name in names or not names else names[0]


def _provenance(recipe: Recipe, dataset: ImageDataset, root: Root) -> dict[str, Any]:
    """Returns what the card says about the data."""
    about = {
        "name": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "sha256": dataset.sha256,
    }
    if recipe.data not in ("digits", "mnist"):
        return about
    held_out = recipe.held_out(root)
    return about | {
        "held out": f"{held_out.name}/{held_out.split}",
        "held out sha256": held_out.sha256,
    }


def _device(fabric: Fabric) -> str:
    """Returns what a rerun would have to match: the kind of device, and how many processes."""
    if fabric.device.type == "cuda":
        kind = torch.cuda.get_device_name(fabric.device)
    else:
        kind = f"{platform.machine()}, {torch.get_num_threads()} threads"
    processes = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    return f"{fabric.device.type} ({kind}{processes})"


# --- The recipes of the models, each with its class ---------------------------------------------------------------


def network_of(kind: type[Network], recipe: Recipe, dataset: ImageDataset, **given: Any) -> Network:
    """Builds a network for a data set's images, with the recipe's own settings where they have the same names.

    Settings that every recipe has, such as the precision of the arithmetic, say nothing about a network.

    Args:
        kind: the network's class.
        recipe: whose settings become arguments.
        dataset: its images say `channels` and `size`.
        given: arguments that the recipe has under another name, or not at all.

    Raises:
        TypeError: for an argument that nobody gives, since a default would be a setting that no recipe records, or one
            that the network does not have.
    """
    own = {f.name for f in fields(recipe)} - {f.name for f in fields(Recipe)}
    known = {name: getattr(recipe, name) for name in own}
    known |= {"channels": dataset.images.shape[1], "size": dataset.images.shape[2]} | given
    names = list(inspect.signature(kind).parameters)
    if missing := [name for name in names if name not in known]:
        raise TypeError(f"{type(recipe).__name__} has no {missing[0]} for {kind.__name__}.")
    return kind(**{name: known[name] for name in names} | given)


@dataclass(frozen=True, kw_only=True)
class DigitCNNRecipe(Recipe):
    """The digit classifier behind every FID on digits: eight passes over MNIST, augmented by small affine maps.

    Attributes:
        width: channels of the first layers.
        degrees: largest rotation of the augmentation.
        scale: its largest relative change of size.
        shear: its largest shear.
        shift: its largest shift in pixels.
    """

    steps: int = 3680
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    channels_last: bool = True
    width: int = 32
    degrees: float = 10.0
    scale: float = 0.1
    shear: float = 0.1
    shift: float = 2.0

    def build(self, dataset: ImageDataset) -> Objective:
        if dataset.images.shape[1] != 1:
            raise ValueError(
                f"the digit classifier takes grey images, but {dataset.name!r} has {dataset.images.shape[1]} channels."
            )
        network = DigitCNN(width=self.width, classes=len(dataset.classes))

        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            images, labels = batch
            x = random_affine(
                to_float(images),
                source,
                degrees=self.degrees,
                scale=self.scale,
                shear=self.shear,
                shift=self.shift,
            )
            return {"loss": F.cross_entropy(network(x).float(), labels)}

        return minimise(network, loss)

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for found in self.test_sets(root):
            metrics |= evaluator.accuracy(network, found)
        return metrics


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Recipe):
    """The autoencoder of chapter 8: the least squared error through a bottleneck.

    Attributes:
        latent: numbers a code.
        width: channels of the convolutional one's largest feature map; scales the perceptron likewise.
        network: "convolutional" or "mlp".
        parts: Gaussians in the mixture that is fitted to the codes when samples are measured.
    """

    steps: int = 8_000
    batch_size: int = 64
    learning_rate: float = 3e-3
    clip: float | None = 1.0
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    channels_last: bool = True
    latent: int = 32
    width: int = 16
    network: Literal["convolutional", "mlp"] = "convolutional"
    parts: int = 10

    def build(self, dataset: ImageDataset) -> Objective:
        network = network_of(Autoencoder, self, dataset)
        return minimise(network, lambda batch, source: network.loss(to_float(batch[0]), source))

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        held_out, train = self.held_out(root), self.training_data(root)
        metrics: dict[str, float] = {}
        for found in self.test_sets(root):
            metrics |= evaluator.reconstruction(lambda x, _: network(x), found)
        metrics |= evaluator.linear_probe(network.encode, train, held_out)
        codes = evaluator.each(lambda x, _: network.encode(x).float(), train[:10_000], "codes")
        density = fit_mixture(codes, self.parts, derive(self.seed, "mixture")).to(evaluator.device)
        quality = evaluator.sample_quality(
            lambda n, source: sample_codes(network, density, n, source), held_out
        )
        return metrics | {f"codes from a mixture: {k}": v for k, v in quality.items()}


@dataclass(frozen=True, kw_only=True)
class VAERecipe(Recipe):
    """The variational autoencoder of chapter 10: dynamically binarised MNIST, bounds in nats.

    Attributes:
        width: channels at half the side of the image; hidden units of an MLP in sixteens.
        latent: number of latent coordinates.
        depth: residual blocks at each scale; hidden layers of an MLP.
        architecture: "convolutional" or "mlp".
        likelihood: "bernoulli" for black and white pixels, "gaussian" for bytes.
        beta: weight of the KL term in the loss.
        free_nats: KL of an image below which the loss does not reward a smaller one.
        sigma: standard deviation of a Gaussian decoder in units of [−1, 1]; None learns it.
        conditional: give encoder and decoder the label.
        iwae: draws of the importance-weighted bound when it is measured; 0 leaves it out.
    """

    steps: int = 30_000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.02
    clip: float | None = 200.0
    ema: float | None = 0.999
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    width: int = 32
    latent: int = 32
    depth: int = 1
    architecture: Literal["convolutional", "mlp"] = "convolutional"
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    beta: float = 1.0
    free_nats: float = 0.0
    sigma: float | None = None
    conditional: bool = False
    iwae: int = 50

    def build(self, dataset: ImageDataset) -> Objective:
        classes = len(dataset.classes) if self.conditional else 0
        network = network_of(VAE, self, dataset, classes=classes)

        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            images, labels = batch
            return network.loss(to_float(images), source, labels if self.conditional else None)

        return minimise(network, loss, sample=lambda net, n, source: net.sample(n, source))

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for found in self.test_sets(root):
            where = f"{found.name}/{found.split}"

            def terms(x: Tensor, source: Source, labels: Tensor) -> Tensor:
                bound = network.elbo(x, source, labels if self.conditional else None)
                return torch.stack([-bound.elbo, -bound.log_likelihood, bound.kl.sum(1)], dim=1)

            names = ("−ELBO, nats", "reconstruction, nats", "KL, nats")
            rows = evaluator.each(terms, found, "elbo", labelled=True)
            values = rows.double().mean(dim=0).tolist()
            metrics |= {f"{where} {k}": v for k, v in zip(names, values, strict=True)}
            if self.likelihood == "gaussian":
                bits = bits_per_dimension(values[0], found.images[0].numel(), unit=BYTE)
                metrics[f"{where} bits/dim, at most"] = bits
            if self.iwae:

                def tighter(x: Tensor, source: Source, labels: Tensor) -> Tensor:
                    return network.iwae(x, self.iwae, source, labels if self.conditional else None)

                metrics[f"{where} −IWAE-{self.iwae}, nats"] = -evaluator.mean(
                    tighter, found, "iwae", labelled=True
                )
        return metrics | evaluator.sample_quality(network.sample, self.held_out(root))


@dataclass(frozen=True, kw_only=True)
class DenoisingAutoencoderRecipe(Recipe):
    """The denoising autoencoder of chapter 9: Gaussian noise of all levels in a range, one network that is not told.

    Attributes:
        width: channels of the first feature map.
        latent: numbers in the bottleneck.
        corruption: "gaussian", "masking" or "salt-and-pepper".
        amount: lowest standard deviation of the noise, or share of the pixels.
        amount_max: the highest; None trains at one amount alone, and then there are no samples.
    """

    steps: int = 4000
    learning_rate: float = 2e-3
    ema: float | None = 0.999
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    channels_last: bool = True
    width: int = 16
    latent: int = 64
    corruption: Literal["gaussian", "masking", "salt-and-pepper"] = "gaussian"
    amount: float = 0.2
    amount_max: float | None = 5.0

    def build(self, dataset: ImageDataset) -> Objective:
        network = network_of(DenoisingAutoencoder, self, dataset)
        return minimise(
            network,
            lambda batch, source: network.loss(to_float(batch[0]), source),
            sample=(lambda net, n, source: net.sample(n, source)) if network.can_sample else None,
        )

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        held_out, train = self.held_out(root), self.training_data(root)
        metrics: dict[str, float] = {}
        for found in self.test_sets(root):
            for level in sorted({self.amount, 0.5, self.amount_max or self.amount}):

                def denoise(x: Tensor, source: Source, level: float = level) -> Tensor:
                    return network(corrupt(x, self.corruption, level, source))

                values = evaluator.reconstruction(denoise, found, f"noise {level:g}")
                metrics |= {f"{key}, noise {level:g}": value for key, value in values.items()}
        metrics |= evaluator.linear_probe(network.encode, train, held_out)
        if network.can_sample:
            metrics |= evaluator.sample_quality(network.sample, held_out)
        return metrics


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderRecipe(Recipe):
    """The masked autoencoder of chapter 9: patches of 4×4 pixels, three quarters of them hidden.

    Attributes:
        patch: side of a patch in pixels.
        encoder_width: channels of the encoder's tokens.
        layers: blocks of the encoder.
        decoder_width: channels of the decoder's tokens.
        decoder_layers: blocks of the decoder.
        heads: attention heads of every block.
        share: of the patches to hide.
        normalise: take each target patch's own mean and deviation out.
        learned_positions: train the position codes.
    """

    steps: int = 3000
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    beta2: float = 0.95
    clip: float | None = 1.0
    ema: float | None = 0.999
    patch: int = 4
    encoder_width: int = 64
    layers: int = 3
    decoder_width: int = 48
    decoder_layers: int = 1
    heads: int = 4
    share: float = 0.75
    normalise: bool = False
    learned_positions: bool = False

    def build(self, dataset: ImageDataset) -> Objective:
        network = network_of(MaskedAutoencoder, self, dataset, width=self.encoder_width)
        return minimise(network, lambda batch, source: network.loss(to_float(batch[0]), source))

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        held_out, train = self.held_out(root), self.training_data(root)
        metrics: dict[str, float] = {}
        for found in self.test_sets(root):
            key = f"{found.name}/{found.split} MSE of hidden patches"
            metrics[key] = evaluator.mean(network.errors, found, "masks")
        return metrics | evaluator.linear_probe(network.features, train, held_out)


@dataclass(frozen=True, kw_only=True)
class GANRecipe(Recipe):
    """The generative adversarial network of chapter 6: DCGAN's networks, spectral normalisation, the hinge loss.

    Attributes:
        latent: numbers of noise an image.
        generator_width: channels of the generator at half the side of the image.
        discriminator_width: channels of the discriminator at half the side.
        conditional: give both the label.
        normalise: of the discriminator, "spectral" or "none".
        loss: "minimax", "non-saturating", "wasserstein" or "hinge".
        gradient_penalty: weight of the penalty between real and fake images (WGAN-GP has 10).
        r1: weight of the penalty at the real images.
        generator_every: updates of the discriminator for each of the generator.
        generator_rate: the generator's learning rate, where it differs.
    """

    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    beta1: float = 0.0
    beta2: float = 0.99
    warmup: float = 0.0
    ema: float | None = 0.999
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    channels_last: bool = True
    latent: int = 64
    generator_width: int = 64
    discriminator_width: int = 32
    conditional: bool = False
    normalise: Literal["spectral", "none"] = "spectral"
    loss: Literal["minimax", "non-saturating", "wasserstein", "hinge"] = "hinge"
    gradient_penalty: float = 0.0
    r1: float = 0.0
    generator_every: int = 1
    generator_rate: float | None = None

    def build(self, dataset: ImageDataset) -> Objective:
        _no_compiled_penalty(self.compile, self.gradient_penalty or self.r1)
        classes = len(dataset.classes) if self.conditional else 0
        network = network_of(GAN, self, dataset, classes=classes)

        def tell(batch: Batch, source: Source) -> dict[str, Tensor]:
            images, labels = batch
            given = labels if self.conditional else None
            return network.discriminator_loss(to_float(images), source, given)

        def fool(batch: Batch, source: Source) -> dict[str, Tensor]:
            images, labels = batch
            given = labels if self.conditional else None
            return network.generator_loss(len(images), source, given)

        d, g = list(network.discriminator.parameters()), list(network.generator.parameters())
        return Objective(
            network,
            (
                Phase("discriminator", d, tell),
                Phase("generator", g, fool, self.generator_rate, self.generator_every),
            ),
            sample=lambda net, n, source: net.sample(n, source),
        )

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        return evaluator.sample_quality(network.sample, self.held_out(root))


def _no_compiled_penalty(compiled: bool, weight: float) -> None:
    if compiled and weight:
        raise ValueError(
            "a penalty on the discriminator's slope needs second derivatives, which torch.compile does not have; "
            "leave out compile, or the penalty."
        )


@dataclass(frozen=True, kw_only=True)
class ImageToImageRecipe(Recipe):
    """The small tasks of chapter 6: restoring or restyling an image by a content loss, a judge of pairs, or both.

    Attributes:
        task: "style" (thin strokes to bold), "super-resolution", "completion" or "denoising".
        generator_width: channels of the generator at the full side of the image.
        discriminator_width: channels of the judge at half the side.
        content: weight of the mean squared error a pixel.
        adversarial: weight of the judge; 0 leaves it out.
        loss: "minimax", "non-saturating", "wasserstein" or "hinge".
    """

    steps: int = 2000
    learning_rate: float = 1e-3
    beta1: float = 0.5
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    task: Literal["style", "super-resolution", "completion", "denoising"] = "completion"
    generator_width: int = 16
    discriminator_width: int = 16
    content: float = 1.0
    adversarial: float = 0.01
    loss: Literal["minimax", "non-saturating", "wasserstein", "hinge"] = "non-saturating"

    def build(self, dataset: ImageDataset) -> Objective:
        network = network_of(ImageToImage, self, dataset)

        def judge(batch: Batch, source: Source) -> dict[str, Tensor]:
            return network.discriminator_loss(*TASKS[self.task](to_float(batch[0]), source))

        def answer(batch: Batch, source: Source) -> dict[str, Tensor]:
            return network.generator_loss(*TASKS[self.task](to_float(batch[0]), source))

        d, g = list(network.discriminator.parameters()), list(network.generator.parameters())
        phases = (Phase("discriminator", d, judge), Phase("generator", g, answer))
        return Objective(network, phases if self.adversarial else phases[1:])

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        digits = self.data in ("digits", "mnist")
        metrics: dict[str, float] = {}
        for found in self.test_sets(root):

            def rows(x: Tensor, source: Source) -> Tensor:
                given, wanted = TASKS[self.task](x, source)
                answer = network(given).float().clamp(-1, 1)
                columns = [psnr(answer, wanted, data_range=2.0)[:, None]]
                columns += [sharpness(image)[:, None] for image in (answer, wanted)]
                if digits:
                    columns += [digit_features(image) for image in (answer, wanted)]
                return torch.cat([column.double() for column in columns], dim=1)

            where = f"{found.name}/{found.split} {self.task}"
            row = evaluator.each(rows, found, self.task)
            decibels, sharp, wanted = row[:, :3].mean(dim=0).tolist()
            metrics[f"{where} PSNR, dB"] = decibels
            metrics[f"{where} sharpness, share of wanted"] = sharp / wanted
            if digits:
                metrics[f"{where} FID"] = fid(*row[:, 3:].chunk(2, dim=1))
        return metrics


@dataclass(frozen=True, kw_only=True)
class VAEGANRecipe(Recipe):
    """The VAE-GAN of chapter 11: an autoencoder whose likeness is that of a discriminator's features.

    Attributes:
        latent: numbers a code.
        encoder_width: channels of the encoder at the full side of the image.
        decoder_width: channels of the decoder at half the side.
        discriminator_width: channels of the discriminator at half the side.
        layer: which of the discriminator's convolutions is compared; −1 is the deepest.
        features: compare features; False compares pixels.
        likeness: half the squared distance is multiplied by this: 1/σ² of the Gaussian around features or pixels.
        beta: weight of the KL.
        gamma: weight of the likeness in the decoder's loss, beside the judge.
        adversarial: weight of the judge there; 0 leaves it out.
        loss: "minimax", "non-saturating", "wasserstein" or "hinge".
    """

    steps: int = 8_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    beta1: float = 0.0
    beta2: float = 0.99
    warmup: float = 0.02
    ema: float | None = 0.999
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    channels_last: bool = True
    latent: int = 32
    encoder_width: int = 16
    decoder_width: int = 64
    discriminator_width: int = 32
    layer: int = 1
    features: bool = True
    likeness: float = 10.0
    beta: float = 1.0
    gamma: float = 0.01
    adversarial: float = 1.0
    loss: Literal["minimax", "non-saturating", "wasserstein", "hinge"] = "hinge"

    def build(self, dataset: ImageDataset) -> Objective:
        network = network_of(VAEGAN, self, dataset, precision=self.likeness)
        phases = tuple(
            Phase(
                name, list(part.parameters()), lambda b, source, f=loss: f(to_float(b[0]), source)
            )
            for name, part, loss in (
                ("discriminator", network.discriminator, network.discriminator_loss),
                ("encoder", network.encoder, network.encoder_loss),
                ("decoder", network.decoder, network.decoder_loss),
            )
        )
        judged = self.features or self.adversarial
        return Objective(
            network,
            phases if judged else phases[1:],
            sample=lambda net, n, source: net.sample(n, source),
        )

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for found in self.test_sets(root):
            metrics |= evaluator.reconstruction(lambda x, _: network.reconstruct(x), found)
        return metrics | evaluator.sample_quality(network.sample, self.held_out(root))


RECIPES: dict[str, Recipe] = {
    "autoencoder": AutoencoderRecipe(),
    "denoising-autoencoder": DenoisingAutoencoderRecipe(),
    "digit-cnn": DigitCNNRecipe(),
    "gan": GANRecipe(),
    "gan-cifar10": GANRecipe(
        data="cifar10",
        steps=100_000,
        learning_rate=2e-4,
        beta1=0.0,
        beta2=0.9,
        latent=128,
        generator_width=128,
        discriminator_width=128,
        generator_every=5,
    ),
    "image-to-image": ImageToImageRecipe(),
    "masked-autoencoder": MaskedAutoencoderRecipe(),
    "vae": VAERecipe(),
    "vae-gan": VAEGANRecipe(),
    # The same encoder and decoder with the same precision, judged by pixels alone: what chapter 11 compares with.
    "vae-gan-pixels": VAEGANRecipe(
        features=False, adversarial=0.0, gamma=1.0, learning_rate=2e-3, beta1=0.9, beta2=0.999
    ),
}
