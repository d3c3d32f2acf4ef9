"""The training loop that every model of the book goes through.

It knows no model. An `Objective` brings the network and one or more phases, each with its parameters and its
loss: a variational autoencoder has one phase, a GAN two. The loop takes care of the order of the data and of
floats where losses want floats, of noise, precision, gradient accumulation, clipping, the learning rate, the
average of the weights and of several processes. All of its randomness is a function of the seed, the step and the
phase, so a run that stops can go on exactly, and two processes do what one does.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

from companion.data.batch import Batch
from companion.data.images import ImageDataset
from companion.devices import default_device, resolve_precision, warn_if_slow
from companion.randomness import Rows, Source, derive
from companion.training.batches import BatchOrder
from companion.training.ema import EMA
from companion.training.launch import new_fabric
from companion.training.optimiser import (
    check_moments,
    check_tensors,
    load_moments,
    moments_of,
    parameter_groups,
    require,
)
from companion.training.processes import average_gradients, from_rank_zero
from companion.training.settings import TrainingSettings, learning_rate_factor
from companion.training.state import StateError

# Takes a batch of a data set, or a tuple where the data are tensors, and the randomness for its samples; returns
# means over the batch, among them "loss".
Loss = Callable[[Any, Source], Mapping[str, Tensor]]
# What is trained.
N = TypeVar("N", bound=nn.Module)

# Data sets up to this many bytes live on the device; larger ones are copied batch by batch.
RESIDENT_BYTES = 4 * 2**30


class DivergedError(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
        step: the step, counted from 1, at which that happened first.
        what: what is not finite.
        state: the last good saved state, in words; None where none is known of.
    """

    def __init__(self, step: int, state: str | None = None, what: str = "loss") -> None:
        saved = "" if state is None else f" {state}"
        super().__init__(
            f"the {what} is not finite at step {step}. Try a lower learning rate, a longer warm-up, clipping "
            f"of the gradient (clip=1.0), or 32-true precision if it was bf16-mixed.{saved}"
        )
        self.step, self.state, self.what = step, state, what


@dataclass(frozen=True)
class Phase:
    """One optimiser's turn in a step.

    Attributes:
        name: what it is called in logs and saved states.
        parameters: what it trains; gradients are computed for nothing else.
        loss: from a batch and its randomness to means over the samples, among them "loss".
        learning_rate: the peak, where it differs from the settings'.
        every: it takes its turn at every so many steps.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Loss
    learning_rate: float | None = None
    every: int = 1


@dataclass(frozen=True)
class Objective(Generic[N]):
    """What is to be trained.

    Attributes:
        network: everything with weights; this is what is saved.
        phases: the turns of a step, in their order.
        sample: draws images in [−1, 1] from a network (or its average), for the sample sheets; or None.
        parents: networks that the losses use and nobody trains, by their roles; a run goes on with the same ones only.
    """

    network: N
    phases: tuple[Phase, ...]
    sample: Callable[[N, int, Source], Tensor] | None = None
    parents: Mapping[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"an objective needs phases with different names, got {names}.")
        if all(phase.every > 1 for phase in self.phases):
            raise ValueError("one phase at least must take its turn at every step (every=1).")


def single_objective(
    network: N,
    loss: Loss,
    sample: Callable[[N, int, Source], Tensor] | None = None,
) -> Objective[N]:
    """Returns the ordinary objective: one loss, for all parameters of one network."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return Objective(network, (Phase("loss", parameters, loss),), sample)


@dataclass(frozen=True)
class Progress:
    """What one step did.

    Attributes:
        step: its number, from 1.
        total: number of steps of the training.
        learning_rate: the factor of the schedule times the settings' rate.
        values: what the losses returned, detached; with several phases as "phase/name".
    """

    step: int
    total: int
    learning_rate: float
    values: dict[str, Tensor] = field(repr=False)

    @property
    def loss(self) -> float:
        """The loss as a number (of the first phase, if there are several)."""
        return float(next(v for k, v in self.values.items() if k.split("/")[-1] == "loss"))

    def __getitem__(self, name: str) -> float:
        return float(self.values[name])


def _share(fabric: Fabric, settings: TrainingSettings) -> int:
    """Returns how many samples each process works on at a time."""
    parts = fabric.world_size * settings.accumulate
    if settings.batch_size % parts:
        raise ValueError(
            f"batch_size is {settings.batch_size}, which {fabric.world_size} processes × {settings.accumulate} "
            f"accumulated parts do not divide; choose a multiple of {parts}."
        )
    return settings.batch_size // parts


def _batch_of(
    dataset: ImageDataset, indices: Tensor, device: torch.device, memory_format: torch.memory_format
) -> Batch:
    """Returns the samples of some indices, with all that the data set has of them."""
    batch = dataset.batch_at(indices, device)
    if memory_format == torch.contiguous_format:
        return batch
    images = batch.require_images().contiguous(memory_format=memory_format)
    return replace(batch, images=images)


def _tuple_of(
    tensors: Sequence[Tensor],
    indices: Tensor,
    device: torch.device,
    memory_format: torch.memory_format,
) -> tuple[Tensor, ...]:
    """Returns the rows of some indices of each tensor."""
    rows = tuple(t.index_select(0, indices) for t in tensors)
    if rows[0].device != device:
        rows = tuple(t.pin_memory().to(device, non_blocking=True) for t in rows)
    return tuple(t.contiguous(memory_format=memory_format) if t.ndim == 4 else t for t in rows)


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of named tensors: names, types, shapes and content."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _begin_with(network: nn.Module, start: Mapping[str, Tensor]) -> None:
    """Gives a network the weights it is to begin with, after checking that they are its own in name and shape.

    Raises:
        ValueError: if they are not.
    """
    own = network.state_dict()
    if odd := sorted(set(own) ^ set(start)):
        some = ", ".join(map(repr, odd[:3])) + (" and more" if len(odd) > 3 else "")
        raise ValueError(
            f"the weights to begin with are of another network: {some} is in one of them only. Take a checkpoint of "
            "the same model, and its settings."
        )
    for name, tensor in own.items():
        if tensor.shape != start[name].shape:
            raise ValueError(
                f"the weights to begin with are of another network: {name!r} has the shape {tuple(start[name].shape)}, "
                f"here {tuple(tensor.shape)}. Take a checkpoint of the same model, and its settings."
            )
    network.load_state_dict(start)


class Trainer:
    """Trains an objective; iterating over it takes one step at a time.

    The visible loop is the caller's own:

        trainer = Trainer(single_objective(model, loss), data, TrainingSettings(steps=500))
        for progress in trainer:
            ...

    With several processes, each works on its share of every batch and the gradients are averaged, which gives
    the gradient of one process up to rounding; all begin with rank zero's weights. What looks at more than
    one sample at a time sees a process's share only: PyTorch's batch normalisation normalises over it (and its
    running statistics are rank zero's; `companion.nn.normalisation` has one that counts all processes),
    and dropout draws other masks in every process. The same holds for the parts of an accumulated gradient.

    Args:
        objective: the network and its losses.
        data: a dataset, of which a loss is given a `Batch` with images in [−1, 1]; or tensors of equal length, of
            which it is given a tuple.
        settings: how to train.
        fabric: where to train, as `launch` gives it; by default one process on the default device.
        start: weights to begin with, by the names of the network's `state_dict`; by default those it has.

    Attributes:
        step: the steps done.
        precision: of this training, "32-true" or "bf16-mixed", whatever "auto" in the settings means here.
        start_sha256: the hash of the weights given to begin with; None where there were none.
        parents_sha256: the hashes of the weights of the objective's parents, by their roles.

    Raises:
        ValueError: if the data are fewer than a batch, differ in length, the batch cannot be divided among
            the processes, the fabric has another precision than the settings, or `start` is of another network.
    """

    def __init__(
        self,
        objective: Objective,
        data: ImageDataset | Sequence[Tensor],
        settings: TrainingSettings,
        fabric: Fabric | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.objective, self.settings, self.data = objective, settings, data
        if fabric is None:
            kind = default_device().type
            fabric = new_fabric(kind, 1, 1, settings.precision)
            warn_if_slow(settings.precision, kind)
        self.fabric, device = fabric, fabric.device
        self.precision = resolve_precision(settings.precision, device)
        with fabric.autocast():
            mixed = torch.is_autocast_enabled(device.type)
        if mixed != (self.precision == "bf16-mixed"):
            raise ValueError(
                f"the settings ask for {self.precision}, but the fabric has another precision; give "
                f"launch(precision={settings.precision!r})."
            )
        self._share = _share(fabric, settings)
        self._place(data)
        self.start_sha256 = None if start is None else _fingerprint(start)
        self.parents_sha256 = {
            role: _fingerprint(parent.state_dict()) for role, parent in objective.parents.items()
        }
        if start is not None:
            _begin_with(objective.network, start)
        network = objective.network.to(device)
        if settings.channels_last:
            network.to(memory_format=torch.channels_last)
        if self._many:
            from_rank_zero((*network.parameters(), *network.buffers()))
        self._optimisers = {p.name: self._optimiser(p) for p in objective.phases}
        self.ema = EMA(network, settings.ema) if settings.ema else None
        if settings.compile:
            # In place, so that the names of the weights stay; each part on its own, as losses call the parts.
            for part in network.children():
                part.compile()
        self.step = 0
        self._first_bad = torch.zeros((), dtype=torch.int64, device=device)
        # Reading a number back from a GPU, or asking all processes, takes time, so it is done now and then.
        self._check_every = 1 if device.type == "cpu" and not self._many else 20

    def _place(self, data: ImageDataset | Sequence[Tensor]) -> None:
        """Puts the data on the device if there is room for them, and determines their order."""
        tensors = (data.images, data.labels) if isinstance(data, ImageDataset) else tuple(data)
        if len({len(t) for t in tensors}) != 1:
            raise ValueError(f"the data differ in length: {[len(t) for t in tensors]}.")
        if sum(t.nbytes for t in tensors) <= RESIDENT_BYTES:
            tensors = tuple(t.to(self.fabric.device) for t in tensors)
        self._data: ImageDataset | tuple[Tensor, ...] = tensors
        if isinstance(data, ImageDataset):
            self._data = replace(data, images=tensors[0], labels=tensors[1])
        self._order = BatchOrder(
            len(tensors[0]), self.settings.batch_size, self.settings.seed, tensors[0].device
        )

    @property
    def _many(self) -> bool:
        return self.fabric.world_size > 1

    @property
    def network(self) -> nn.Module:
        """The network that should be used: the average of the weights, where there is one."""
        return self.ema.network if self.ema else self.objective.network

    def _optimiser(self, phase: Phase) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.AdamW(
            parameter_groups(self.objective.network, phase.parameters, s.weight_decay),
            lr=phase.learning_rate or s.learning_rate,
            betas=(s.beta1, s.beta2),
            fused=True,
        )

    def _rows(self, part: int) -> tuple[int, int]:
        start = (self.fabric.global_rank * self.settings.accumulate + part) * self._share
        return start, start + self._share

    def _batch(self, start: int, stop: int) -> Batch | tuple[Tensor, ...]:
        """Returns the rows `start` … `stop` − 1 of this step's batch, on the device."""
        indices = self._order.indices(self.step)[start:stop]
        last = self.settings.channels_last
        order = torch.channels_last if last else torch.contiguous_format
        if isinstance(self._data, ImageDataset):
            return _batch_of(self._data, indices, self.fabric.device, order)
        return _tuple_of(self._data, indices, self.fabric.device, order)

    def _turn(self, phase: Phase, factor: float) -> dict[str, Tensor]:
        """Lets one phase take its turn: gradients over all parts, their mean over the processes, one update."""
        optimiser, parts = self._optimisers[phase.name], self.settings.accumulate
        optimiser.zero_grad(set_to_none=True)
        alone = len(self.objective.phases) == 1
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            start, stop = self._rows(part)
            noise = derive(self.settings.seed, phase.name, self.step, device=self.fabric.device)
            source = Rows(noise, start, stop, self.settings.batch_size)
            with self.fabric.autocast():
                values = phase.loss(self._batch(start, stop), source)
            if "loss" not in values:
                raise ValueError(
                    f"the loss of phase {phase.name!r} returned {sorted(values)}, but no 'loss' to minimise."
                )
            inputs = None if alone else list(phase.parameters)
            shares = values if parts == 1 else {k: v / parts for k, v in values.items()}
            shares["loss"].backward(inputs=inputs)
            for name, value in shares.items():
                mean = value.detach()
                sums[name] = sums[name] + mean if name in sums else mean
        if self._many:
            average_gradients(self.fabric, phase.parameters)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(phase.parameters, self.settings.clip)
        for group in optimiser.param_groups:
            group["lr"] = factor * (phase.learning_rate or self.settings.learning_rate)
        optimiser.step()
        return sums

    @contextlib.contextmanager
    def _global_randomness(self) -> Iterator[None]:
        """Layers such as dropout draw from torch's global generator: here a function of seed, step and process."""
        device = self.fabric.device
        # Not torch.manual_seed: on a machine without CUDA each call of it queues a note for a later start of CUDA.
        generators = [torch.default_generator]
        if device.type == "cuda":
            generators.append(torch.cuda.default_generators[device.index or 0])
        before = [generator.get_state() for generator in generators]
        rank = self.fabric.global_rank
        seed = derive(self.settings.seed, "layers", self.step, rank).initial_seed()
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)

    def advance(self) -> Progress:
        """Takes one step.

        Raises:
            DivergedError: if a loss is not finite; on a GPU, or with several processes, up to 20 steps later,
                but with the number of the first.
        """
        factor = learning_rate_factor(self.step, self.settings)
        values: dict[str, Tensor] = {}
        if not self.objective.network.training:  # since walking through a deep network takes time
            self.objective.network.train()
        with self._global_randomness():
            for phase in self.objective.phases:
                if self.step % phase.every:
                    continue
                alone = len(self.objective.phases) == 1
                for name, value in self._turn(phase, factor).items():
                    values[name if alone else f"{phase.name}/{name}"] = value
        self.step += 1
        if self._many:
            from_rank_zero(self.objective.network.buffers())
        if self.ema:
            self.ema.update(self.objective.network)
        self._note_losses([v for k, v in values.items() if k.split("/")[-1] == "loss"])
        if self.step % self._check_every == 0 or self.step == self.settings.steps:
            self.check()
        return Progress(
            self.step, self.settings.steps, factor * self.settings.learning_rate, values
        )

    def _note_losses(self, losses: Sequence[Tensor]) -> None:
        """Remembers the first step at which a loss is not finite."""
        if self._first_bad.device.type == "cpu":
            if not all(math.isfinite(loss) for loss in losses) and not self._first_bad:
                self._first_bad.fill_(self.step)
            return
        for loss in losses:  # without reading it, for which a GPU would have to be waited for
            bad = ~torch.isfinite(loss) & (self._first_bad == 0)
            self._first_bad = torch.where(bad, self.step, self._first_bad)

    def check(self) -> None:
        """Raises `DivergedError` if a loss of any process has not been finite so far; all must call it."""
        first = self._first_bad
        if self._many:
            # The earliest over the processes; 0 means none.
            never = torch.iinfo(torch.int64).max
            first = torch.where(first == 0, never, first)
            distributed.all_reduce(first, distributed.ReduceOp.MIN)
            first = torch.where(first == never, 0, first)
        if int(first):
            raise DivergedError(int(first))

    def __iter__(self) -> Iterator[Progress]:
        """Takes the steps that remain, yielding after each; afterwards the network is in evaluation mode."""
        while self.step < self.settings.steps:
            yield self.advance()
        self.objective.network.eval()

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns values as numbers, averaged over the processes; all of them must call it."""
        if not values:
            return {}
        together = torch.stack([v.float() for v in values.values()])
        if self._many:
            distributed.all_reduce(together)
            together /= self.fabric.world_size
        return dict(zip(values, together.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the next step depends on.

        Random states are not among it, as they are functions of seed, step and process. The tensors are the
        ones that training goes on to change; copy or save them at once.
        """
        return {
            "step": self.step,
            "network": self.objective.network.state_dict(),
            "ema": None
            if self.ema is None
            else {"updates": self.ema.updates, "network": self.ema.network.state_dict()},
            "optimisers": {name: moments_of(o) for name, o in self._optimisers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned; the settings of the optimiser stay those of this training.

        Raises:
            StateError: if the state is of other networks or phases, or no state at all. All of it is checked before
                any of it is loaded.
        """
        self._check_state(state)
        self.objective.network.load_state_dict(state["network"])
        if self.ema:
            self.ema.network.load_state_dict(state["ema"]["network"])
            self.ema.updates = state["ema"]["updates"]
        for name, optimiser in self._optimisers.items():
            load_moments(state["optimisers"][name], optimiser)
        self.step = state["step"]
        self._first_bad.zero_()

    def _check_state(self, state: Mapping[str, Any]) -> None:
        known = {"step", "network", "ema", "optimisers"}
        require(
            isinstance(state, Mapping) and set(state) == known, "the saved state has other parts"
        )
        total = self.settings.steps
        require(
            type(state["step"]) is int and 0 <= state["step"] <= total,
            f"the saved state is of step {state['step']!r}, of a training of {total:,} steps",
        )
        phases, average = state["optimisers"], state["ema"]
        require(isinstance(phases, Mapping), "the saved state has no phases")
        if set(phases) != set(self._optimisers) or (average is None) != (self.ema is None):
            raise StateError(
                f"the saved state has the phases {sorted(phases)} and {'no' if average is None else 'an'} average "
                "of the weights, which is not what this recipe trains; use the settings of the run, or another "
                "folder."
            )
        check_tensors(state["network"], self.objective.network.state_dict(), "weights")
        if self.ema:
            require(
                isinstance(average, Mapping)
                and set(average) == {"updates", "network"}
                and type(average["updates"]) is int
                and average["updates"] >= 0,
                "the saved average of the weights holds no weights",
            )
            own = self.ema.network.state_dict()
            check_tensors(average["network"], own, "average of the weights")
        for name, optimiser in self._optimisers.items():
            check_moments(phases[name], optimiser, name)


def train(
    network: nn.Module,
    loss: Loss,
    data: ImageDataset | Sequence[Tensor],
    settings: TrainingSettings,
    *,
    every: int = 0,
    show: Callable[[Progress], object] | None = None,
) -> list[float]:
    """Trains one network by one loss in this process: the short form, for notebooks.

    Args:
        network: trained in place, and left in evaluation mode.
        loss: from a batch and its randomness to means over the samples, among them "loss".
        data: a dataset, or tensors of equal length.
        settings: how to train.
        every: call `show` after every so many steps; 0 never.
        show: receives the progress.

    Returns:
        The loss of every step.
    """
    trainer = Trainer(single_objective(network, loss), data, settings)
    losses = []
    for progress in trainer:
        losses.append(progress.loss)
        if every and show and progress.step % every == 0:
            show(progress)
    return losses
