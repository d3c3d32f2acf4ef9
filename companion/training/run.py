"""A training in a folder: states to go on from, a log, sample sheets, a progress bar, and a clean end.

    trainer = Trainer(objective, data, settings, launch())
    outcome = run(trainer, "runs/vae", resume=True)

The folder then holds `log.csv`, the newest two states (see `companion.training.state`) and, if asked for,
`sheet-00001000.png`. Only rank zero writes, so only it needs to see the folder; it holds a lock on it.
"""

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, distributed
from torch.nn import functional as F
from tqdm import tqdm

from companion.data.images import ImageDataset, to_uint8
from companion.files import FileLockedError, locked, replacing
from companion.randomness import PerImage
from companion.training.log import Averages, Log
from companion.training.processes import rank_zero_does
from companion.training.settings import TrainingSettings, same_schedule
from companion.training.state import (
    RunError,
    StateError,
    last_state,
    newest_state,
    prune,
    room,
    save_state,
    saved_steps,
    state_path,
    tidy,
)
from companion.training.trainer import DivergedError, Progress, Trainer


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: the steps done, in all.
        total: the steps there are to do.
        seconds: the time training took, with all that came before it was resumed.
        losses: what the losses returned, averaged over the last stretch of the log; empty before its first row.
        signal: the number of the signal that interrupted the run, or 0.
        folder: of the run; its newest state is that of `step`.
        plans: the step from which on, and how many steps in all were planned; more than one if the run was made
            longer or shorter after it had begun.
    """

    step: int
    total: int
    seconds: float
    losses: dict[str, float]
    signal: int = 0
    folder: Path = Path()
    plans: tuple[tuple[int, int], ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether a signal (Ctrl-C, SIGTERM) ended the run before its last step."""
        return self.signal != 0

    @property
    def complete(self) -> bool:
        """Whether all steps are done and saved, so that nothing is lost if what comes after is stopped."""
        return self.step >= self.total


# --- Signals and processes ----------------------------------------------------------------------------------------


class Stop:
    """Notes SIGTERM and Ctrl-C instead of dying of them; a second Ctrl-C, a second later or more, stops at once.

    Only the main thread of a program can do so; elsewhere signals do what they did before. (The second's
    distance is there because torchrun passes on a Ctrl-C that the terminal has sent to all processes already.)
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.signal and now - self._since >= 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self._since = number, now

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                # None stands for a handler that was not set by Python, and cannot be set by it.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def agreed(self, fabric: Fabric) -> int:
        """Returns the signal that any process has received; all must call it, and all get the same."""
        if fabric.world_size == 1:
            return self.signal
        number = torch.tensor(self.signal, device=fabric.device)
        distributed.all_reduce(number, distributed.ReduceOp.MAX)
        return int(number)


# --- What is saved, and drawn -------------------------------------------------------------------------------------


def fingerprint(trainer: Trainer) -> dict[str, Any]:
    """Returns what a run must have in common with its saved states, as JSON has it.

    That is every setting, nested ones under their own names, with "auto" as what it means here; the weights that it
    began with, and those of the networks that it builds on; and of the data the content's hash, or for bare tensors
    their types and shapes.
    """
    data = trainer.data
    if isinstance(data, ImageDataset):
        about: dict[str, Any] = {
            "data's name": data.name,
            "data's split": data.split,
            "data's images": len(data),
            "data's SHA-256": data.sha256,
        }
    else:
        about = {"data's tensors": [[str(t.dtype), *t.shape] for t in data]}
    about["initial weights' SHA-256"] = trainer.start_sha256
    for role, sha256 in trainer.parents_sha256.items():
        about[f"SHA-256 of the parent {role!r}"] = sha256
    settings = _flat(dataclasses.asdict(trainer.settings)) | {"precision": trainer.precision}
    return json.loads(json.dumps(about | settings, default=str))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested settings side by side."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, Mapping) else {name: value}
        flat |= {key if key not in flat else f"{name}.{key}": v for key, v in inner.items()}
    return flat


def require_same(
    saved: Mapping[str, Any],
    asked: Mapping[str, Any],
    settings: TrainingSettings,
    done: int,
    folder: Path,
) -> None:
    """Compares a run with its saved states.

    Args:
        saved: the fingerprint of the states.
        asked: that of the run that is to go on from them.
        settings: of that run.
        done: the steps already done.
        folder: of the run.

    Raises:
        RunError: with the names of all settings that differ, if one beside the number of steps does, or if there are
            fewer steps than those already done.
    """
    changed = [key for key in sorted({*saved, *asked}) if saved.get(key) != asked.get(key)]
    if not changed:
        return
    if changed == ["steps"]:
        _replan(saved["steps"], settings, done, folder)
        return
    listed = "; ".join(f"{key}: {saved.get(key)!r} → {asked.get(key)!r}" for key in changed)
    why = (
        " Precision 'auto' is bf16-mixed on CUDA and 32-true on CPUs; to go on elsewhere, ask for the run's own "
        "(--precision)."
        if "precision" in changed
        else ""
    )
    raise RunError(
        f"the run in {str(folder)!r} was begun with other settings ({listed}).{why} Resume it with its own, or train "
        "in another folder."
    )


def _replan(planned: Any, settings: TrainingSettings, done: int, folder: Path) -> None:
    """Allows another number of steps, and warns where the steps done would have had other learning rates by it."""
    steps = settings.steps
    if steps < done:
        raise RunError(
            f"the run in {str(folder)!r} has done {done:,} steps already, more than the {steps:,} asked for. Ask for "
            "more, or train in another folder."
        )
    if not same_schedule(settings, planned, done):
        warnings.warn(
            f"the run in {str(folder)!r} was planned for {planned:,} steps, and goes on after {done:,} to {steps:,}. "
            "From here on the learning rate follows the new plan, so the result is not that of a run which was "
            f"planned for {steps:,} steps from the beginning.",
            stacklevel=2,
        )


def _is_json(value: Any) -> bool:
    """Whether a value holds no tensors, so that it can be compared."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _check(saved: Mapping[str, Any], step: int) -> None:
    """Raises `StateError` if a state is not one that a run has saved."""
    parts = {
        "fingerprint": Mapping,
        "seconds": float,
        "averages": Mapping,
        "log": str,
        "device": str,
        "plans": list,
        "training": Mapping,
    }
    right = (
        set(saved) == set(parts)
        and all(isinstance(saved[name], kind) for name, kind in parts.items())
        and 0 <= saved["seconds"] < math.inf
        and Averages.fits(saved["averages"])
        and bool(saved["plans"])
        and all(
            isinstance(plan, list) and len(plan) == 2 and all(type(n) is int for n in plan)
            for plan in saved["plans"]
        )
        and type(saved["training"].get("step")) is int
        and saved["training"]["step"] == step
        and type(saved["fingerprint"].get("steps")) is int
        and _is_json(saved["fingerprint"])
    )
    if not right:
        raise StateError(f"{state_path(Path(), step).name!r} holds no state of a run.")


def sheet(images: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "c height width"]:
    """Returns images in [−1, 1] side by side on white, in a square of rows and columns."""
    columns = math.ceil(len(images) ** 0.5)
    # A network that is not trained yet may overshoot by far, which must not end its training.
    tiles = to_uint8(images.nan_to_num().clamp(-1, 1))
    tiles = F.pad(tiles, (0, 2, 0, 2), value=255)
    missing = -len(tiles) % columns
    tiles = torch.cat([tiles, tiles.new_full((missing, *tiles.shape[1:]), 255)])
    whole = rearrange(tiles, "(row column) c h w -> c (row h) (column w)", column=columns)
    return F.pad(whole, (2, 0, 2, 0), value=255)


def _draw(trainer: Trainer, count: int) -> UInt8[Tensor, "c height width"]:
    """Draws the sheet of a step; the noise is that of every other sheet, so that one sees the network change."""
    sample, network = trainer.objective.sample, trainer.network
    assert sample is not None
    network.eval()
    with torch.no_grad(), trainer.fabric.autocast():
        source = PerImage(trainer.settings.seed, 0, count, "sheet")
        return sheet(sample(network, count, source).float().cpu())


def _writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            "TensorBoard is not installed. Install it with `pip install tensorboard`, or train without it: "
            "log.csv holds the same numbers."
        ) from error
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


# --- The run ------------------------------------------------------------------------------------------------------


class _Run:
    """A run and its files; `run` says what it does."""

    def __init__(self, trainer: Trainer, folder: Path, sheet_images: int) -> None:
        self.trainer, self.folder, self.sheet_images = trainer, folder, sheet_images
        self.fabric = trainer.fabric
        self.fingerprint = fingerprint(trainer)
        self.averages = Averages()
        self.plans = [[0, trainer.settings.steps]]
        self.before = 0.0  # seconds of training before this process
        self.saved = -1
        self.writer: Any = None
        self.begin()

    def begin(self) -> None:
        """Starts the clock."""
        self.start = self.last_time = time.perf_counter()
        self.last_step = self.trainer.step

    def open(
        self, resume: bool, restarted: bool, tensorboard: bool, stack: contextlib.ExitStack
    ) -> None:
        """Locks the folder, and loads the newest valid state or makes sure that there is none."""

        def find() -> dict[str, Any] | None:
            self._lock(resume and not restarted, stack)
            return self._find(resume, restarted)

        saved = rank_zero_does(self.fabric, find)
        if saved is not None:
            self._load(saved)
        step = self.trainer.step

        def prepare() -> None:
            if saved is not None:
                prune(self.folder, step)
            with room(self.folder, "the log"):
                digest = None if saved is None else saved["log"]
                self.log = Log(self.folder / "log.csv", step, digest)
            if tensorboard:
                self.writer = _writer(self.folder, step)

        rank_zero_does(self.fabric, prepare)
        self.begin()

    def _lock(self, must_exist: bool, stack: contextlib.ExitStack) -> None:
        """Takes the folder for this process, until the run ends or dies."""
        folder = str(self.folder)
        if must_exist and not self.folder.is_dir():
            raise RunError(
                f"there is no run to resume in {folder!r}, as there is no such folder. Leave --resume out to begin one."
            )
        with room(self.folder.parent, "a new folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
        message = f"another process trains in {folder!r}. Wait until it has ended, or choose another folder."
        try:
            stack.enter_context(locked(self.folder / ".lock", message=message))
        except FileLockedError as error:
            raise RunError(str(error)) from error

    def _find(self, resume: bool, restarted: bool) -> dict[str, Any] | None:
        """Returns the state to go on from, or None where the run begins."""
        folder = str(self.folder)
        if not saved_steps(self.folder):
            logged = (self.folder / "log.csv").exists()
            if resume and not restarted:
                begin = (
                    "remove its log.csv to begin anew" if logged else "leave --resume out to begin"
                )
                raise RunError(f"no state has been saved in {folder!r} to resume from; {begin}.")
            if logged and not restarted:
                raise RunError(
                    f"{folder!r} holds the log of a run that has saved no state. Remove it, or choose another folder."
                )
        elif not (resume or restarted):
            raise RunError(
                f"{folder!r} holds a run already. Resume it (resume=True, or --resume), or choose another folder."
            )
        tidy(self.folder)
        saved = newest_state(self.folder, _check)
        if saved is not None:
            done, settings = saved["training"]["step"], self.trainer.settings
            require_same(saved["fingerprint"], self.fingerprint, settings, done, self.folder)
            if (before := saved["device"]) != (now := self.fabric.device.type):
                warnings.warn(
                    f"the run in {folder!r} was begun on {before!r} and goes on on {now!r}, which draws other random "
                    "numbers: it ends as well, but with other bits.",
                    stacklevel=2,
                )
        return saved

    def _load(self, saved: Mapping[str, Any]) -> None:
        step = saved["training"]["step"]
        try:
            self.trainer.load_state_dict(saved["training"])
        except StateError as error:
            path = state_path(self.folder, step)
            raise StateError(f"cannot go on from {str(path)!r}: {error}") from error
        self.averages.restore(saved["averages"], self.fabric.device)
        self.before, self.saved = saved["seconds"], step
        self.plans = [list(plan) for plan in saved["plans"]]
        if self.plans[-1][1] != self.trainer.settings.steps:
            self.plans.append([step, self.trainer.settings.steps])

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def row(self, progress: Progress) -> None:
        """Writes a row of the log."""
        means = self.averages.take(self.trainer)
        now = time.perf_counter()
        done = (progress.step - self.last_step) * self.trainer.settings.batch_size
        rate = done / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = progress.step, now
        row = {
            "step": progress.step,
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(rate, 1),
            "learning_rate": progress.learning_rate,
        } | means

        def write() -> None:
            with room(self.folder, "a row of the log"):
                self.log.append(row)
            if self.writer:
                for name, value in row.items():
                    if name != "step":
                        self.writer.add_scalar(name, value, progress.step)

        rank_zero_does(self.fabric, write)

    def draw(self) -> None:
        """Writes a sheet of samples."""

        def write() -> None:
            picture = _draw(self.trainer, self.sheet_images)
            pixels = picture[0] if len(picture) == 1 else rearrange(picture, "c h w -> h w c")
            path = self.folder / f"sheet-{self.trainer.step:08d}.png"
            with room(self.folder, f"the sheet {path.name!r}"), replacing(path) as file:
                Image.fromarray(pixels.numpy()).save(file, "PNG")
            if self.writer:
                self.writer.add_image("sheet", picture, self.trainer.step)

        rank_zero_does(self.fabric, write)

    def save(self) -> None:
        """Saves a state, unless it is that of a training that has diverged."""
        step = self.trainer.step
        if self.saved == step:
            return
        self.trainer.check()
        averages = self.averages.state(self.trainer)

        def write() -> None:
            # A gradient can overflow where the loss was finite; the next loss would be the first to show it.
            for parameter in self.trainer.objective.network.parameters():
                if not torch.isfinite(parameter).all():
                    raise DivergedError(step, what="norm of the weights")
            with room(self.folder, "the log"):
                self.log.sync()
            state = {
                "fingerprint": self.fingerprint,
                "seconds": self.seconds,
                "averages": averages,
                "log": self.log.digest,
                "plans": self.plans,
                "device": self.fabric.device.type,
                "training": self.trainer.state_dict(),
            }
            save_state(self.folder, step, state)

        rank_zero_does(self.fabric, write)
        self.saved = step

    def outcome(self, number: int) -> Outcome:
        step, total = self.trainer.step, self.trainer.settings.steps

        def ending() -> dict[str, float]:
            tidy(self.folder)
            return self.log.losses()

        losses = rank_zero_does(self.fabric, ending)
        plans = tuple((since, steps) for since, steps in self.plans)
        number = number if step < total else 0
        return Outcome(step, total, self.seconds, losses, number, self.folder, plans)


def run(
    trainer: Trainer,
    folder: str | Path,
    *,
    resume: bool = False,
    restarted: bool = False,
    save_every: int = 1000,
    log_every: int = 50,
    sheet_every: int = 0,
    sheet_images: int = 64,
    progress: bool = True,
    tensorboard: bool = False,
) -> Outcome:
    """Takes all the steps that remain of a training, in a folder of its own.

    After `kill -9` at any moment a resumed run ends, on a CPU, with the very bits of one that was never
    interrupted. SIGTERM and Ctrl-C finish the step, save and return. All processes call this function, and
    all return together. One process, or group of processes, at a time can train in a folder.

    A run can be made longer, or shorter, by resuming it with another number of steps. The learning rate then
    follows the new plan from there on; a warning says so where the steps done would have had other rates by it.

    Args:
        trainer: what to train; it must not have taken a step yet.
        folder: where everything goes.
        resume: go on from the newest valid state in the folder.
        restarted: this process takes the place of one that died, as torchrun starts it: go on from the newest valid
            state, or begin where none has been saved.
        save_every: steps between states; one is also saved at the end, and when the run is interrupted.
        log_every: steps between rows of `log.csv`, each of means since the row before.
        sheet_every: steps between sample sheets, drawn from the average of the weights where there is one;
            0 for none. Objectives without `sample` have none.
        sheet_images: images on a sheet.
        progress: show a progress bar on standard error.
        tensorboard: write the rows and sheets for TensorBoard too, into the folder's `tensorboard`.

    Returns:
        How it ended.

    Raises:
        RunError: if the folder holds a run and neither `resume` nor `restarted` is True, or none and `resume` is; if
            another process trains in it; if the run there was begun with other settings, data or initial weights, or
            has done more steps than are asked for; if its log is damaged; or if TensorBoard is asked for and not
            installed.
        StateError: if there are saved states but none is valid, or they are of another network.
        DivergedError: if a loss or a weight is not finite; the message names the last good state.
        DiskFullError: if there is no room; nothing that was saved before is lost.
        ValueError: if a number is out of its range.
    """
    for name, value, least in (
        ("save_every", save_every, 1),
        ("log_every", log_every, 1),
        ("sheet_every", sheet_every, 0),
        ("sheet_images", sheet_images, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    folder, settings, fabric = Path(folder), trainer.settings, trainer.fabric
    total = settings.steps
    # Asking the other processes makes a GPU wait, so there it is done now and then.
    ask_every = 1 if fabric.world_size == 1 or fabric.device.type == "cpu" else 20
    this = _Run(trainer, folder, sheet_images)
    with Stop().listening() as stop, contextlib.ExitStack() as stack:
        this.open(resume, restarted, tensorboard, stack)
        stack.callback(lambda: this.writer and this.writer.close())
        bar = stack.enter_context(
            tqdm(
                total=total,
                initial=trainer.step,
                desc=folder.name,
                unit=" steps",
                disable=not progress or not fabric.is_global_zero,
            )
        )
        shown, begun = -math.inf, trainer.step
        number = stop.agreed(fabric)
        try:
            while trainer.step < total and not number:
                event = trainer.advance()
                this.averages.add(event.values)
                step, last = event.step, event.step == total
                bar.update()
                if not bar.disable and time.monotonic() - shown > 0.5:
                    shown = time.monotonic()
                    rate = (step - begun) * settings.batch_size / (time.perf_counter() - this.start)
                    bar.set_postfix_str(
                        f"{rate:,.0f} samples/s, loss {event.loss:.4g}", refresh=False
                    )
                if step % ask_every == 0:
                    number = stop.agreed(fabric)
                if step % log_every == 0 or last:
                    this.row(event)
                if sheet_every and trainer.objective.sample and (step % sheet_every == 0 or last):
                    this.draw()
                if step % save_every == 0 or last or number:
                    this.save()
        except DivergedError as error:
            where = rank_zero_does(fabric, lambda: last_state(folder))
            raise DivergedError(error.step, where, error.what) from None
        finally:
            trainer.objective.network.eval()
        return this.outcome(number)
