"""A training in a folder: states to go on from, a log, sample sheets, a progress bar, and a clean end.

    trainer = Trainer(objective, data, settings, launch())
    outcome = run(trainer, "runs/vae", resume=True)

The folder then holds `log.csv`, the newest two states (see `companion.training.state`) and, if asked for,
`samples-00001000.png`. Only the first process writes, so only it needs to see the folder.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, distributed
from torch.nn import functional as F
from tqdm import tqdm

from companion.data.images import ImageDataset, to_uint8
from companion.files import replacing, write_atomically
from companion.randomness import derive
from companion.training.state import (
    last_state,
    newest_state,
    prune,
    room,
    save_state,
    saved_steps,
    tidy,
)
from companion.training.trainer import DivergedError, Progress, Trainer

T = TypeVar("T")


class RunError(ValueError):
    """A run that cannot start as asked: its folder is taken, or its settings are not those it was begun with."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: the steps done, in all.
        total: the steps there are to do.
        seconds: the time training took, with all that came before it was resumed.
        losses: what the losses returned, averaged over the last stretch of the log; empty before its first row.
        signal: the number of the signal that interrupted the run, or 0.
    """

    step: int
    total: int
    seconds: float
    losses: dict[str, float]
    signal: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal (Ctrl-C, SIGTERM) ended the run before its last step."""
        return self.signal != 0


# --- The log ------------------------------------------------------------------------------------------------------

FIXED = ("step", "seconds", "samples_per_second", "learning_rate")


class Log:
    """The rows of `log.csv`, on disk as soon as they are made.

    Args:
        path: of the file.
        step: the last step whose rows are kept, when a run goes on from there.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = list(FIXED)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or FIXED)
                self.rows = [row for row in reader if self._kept(row, step)]
            self._write_all()

    @staticmethod
    def _kept(row: Mapping[str, Any], step: int) -> bool:
        # A killed process can leave a last row that is cut off, even within the number of its step. But such a
        # row is later than the state: rows reach the disk before it does.
        text = row.get("step") or ""
        return text.isdecimal() and int(text) <= step and None not in row.values()

    def _format(self, rows: list[dict[str, Any]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _write_all(self) -> None:
        write_atomically(self.path, self._format(self.rows, header=True).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row; terms that were not there before get a column."""
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new or len(self.rows) == 1:
            self.columns += new
            self._write_all()
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._format([row], header=False))

    def sync(self) -> None:
        """Waits until all rows are on the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def losses(self) -> dict[str, float]:
        """Returns the loss terms of the last row."""
        if not self.rows:
            return {}
        row = self.rows[-1]
        return {k: float(v) for k, v in row.items() if k not in FIXED and v != ""}


class Averages:
    """Means of the loss terms since the last row, kept on the device, as reading them there would make it wait."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, trainer: Trainer) -> dict[str, float]:
        """Returns the means over processes and steps, and begins anew."""
        sums, counts = trainer.mean(self.sums), self.counts
        self.sums, self.counts = {}, {}
        return {name: value / counts[name] for name, value in sums.items()}

    def state(self, trainer: Trainer) -> dict[str, Any]:
        return {"sums": trainer.mean(self.sums), "counts": dict(self.counts)}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.sums = {k: torch.tensor(v, device=device) for k, v in state["sums"].items()}
        self.counts = dict(state["counts"])


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


def first_does(fabric: Fabric, action: Callable[[], T]) -> T:
    """Lets the first process act, and gives all of them what it returned, or raises in all what it raised."""
    if fabric.world_size == 1:
        return action()
    result: Any = None
    if fabric.is_global_zero:
        try:
            result = action()
        except Exception as error:
            result = error
    result = fabric.broadcast(result, src=0)
    if isinstance(result, Exception):
        raise result
    return result


# --- What is saved, and drawn -------------------------------------------------------------------------------------


def fingerprint(trainer: Trainer) -> dict[str, Any]:
    """Returns what a run must have in common with its saved states, as JSON has it.

    That is every setting, and of the data the content's hash, or for bare tensors their types and shapes.
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
    return json.loads(json.dumps(about | dataclasses.asdict(trainer.settings), default=str))


def require_same(saved: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Raises `RunError` with the names of the settings in which a run differs from its saved states."""
    changed = [
        f"{key}: {saved.get(key)!r} → {asked.get(key)!r}"
        for key in sorted({*saved, *asked})
        if saved.get(key) != asked.get(key)
    ]
    if not changed:
        return
    why = (
        " Warm-up and decay are shares of all steps, so with another number of them the steps already done "
        "would have had other learning rates."
        if any(line.startswith("steps:") for line in changed)
        else ""
    )
    raise RunError(
        f"the run in {str(folder)!r} was begun with other settings ({'; '.join(changed)}).{why} Resume it with "
        "its own, or train in another folder."
    )


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
    device = trainer.fabric.device
    network.eval()
    with torch.no_grad(), trainer.fabric.autocast():
        source = derive(trainer.settings.seed, "sheet", device=device)
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

    def __init__(self, trainer: Trainer, folder: Path, samples: int) -> None:
        self.trainer, self.folder, self.samples = trainer, folder, samples
        self.fabric = trainer.fabric
        self.fingerprint = fingerprint(trainer)
        self.averages = Averages()
        self.before = 0.0  # seconds of training before this process
        self.saved = -1
        self.writer: Any = None

    def open(self, resume: bool, tensorboard: bool) -> None:
        """Loads the newest valid state, or makes sure that the folder is free."""
        saved = first_does(self.fabric, lambda: self._find(resume))
        if saved is not None:
            self.trainer.load_state_dict(saved["training"])
            self.averages.restore(saved["averages"], self.fabric.device)
            self.before, self.saved = saved["seconds"], self.trainer.step
        step = self.trainer.step

        def prepare() -> None:
            if saved is not None:
                prune(self.folder, step)
            with room(self.folder, "the log"):
                self.log = Log(self.folder / "log.csv", step)
            if tensorboard:
                self.writer = _writer(self.folder, step)

        first_does(self.fabric, prepare)
        self.start = self.last_time = time.perf_counter()
        self.last_step = step

    def _find(self, resume: bool) -> dict[str, Any] | None:
        if not resume and (saved_steps(self.folder) or (self.folder / "log.csv").exists()):
            raise RunError(
                f"{str(self.folder)!r} holds a run already. Resume it (resume=True, or --resume), or choose "
                "another folder."
            )
        with room(self.folder, "a new folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
        tidy(self.folder)
        saved = newest_state(self.folder)
        if saved is not None:
            require_same(saved["fingerprint"], self.fingerprint, self.folder)
        return saved

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

        first_does(self.fabric, write)

    def draw(self) -> None:
        """Writes a sheet of samples."""

        def write() -> None:
            picture = _draw(self.trainer, self.samples)
            pixels = picture[0] if len(picture) == 1 else rearrange(picture, "c h w -> h w c")
            path = self.folder / f"samples-{self.trainer.step:08d}.png"
            with room(self.folder, f"the sheet {path.name!r}"), replacing(path) as file:
                Image.fromarray(pixels.numpy()).save(file, "PNG")
            if self.writer:
                self.writer.add_image("samples", picture, self.trainer.step)

        first_does(self.fabric, write)

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
                "training": self.trainer.state_dict(),
            }
            save_state(self.folder, step, state)

        first_does(self.fabric, write)
        self.saved = step

    def outcome(self, number: int) -> Outcome:
        step, total = self.trainer.step, self.trainer.settings.steps
        losses = first_does(self.fabric, lambda: self.log.losses())
        return Outcome(step, total, self.seconds, losses, number if step < total else 0)


def run(
    trainer: Trainer,
    folder: str | Path,
    *,
    resume: bool = False,
    save_every: int = 1000,
    log_every: int = 50,
    sample_every: int = 0,
    samples: int = 64,
    progress: bool = True,
    tensorboard: bool = False,
) -> Outcome:
    """Takes all the steps that remain of a training, in a folder of its own.

    After `kill -9` at any moment a resumed run ends, on a CPU, with the very bits of one that was never
    interrupted. SIGTERM and Ctrl-C finish the step, save and return. All processes call this function, and
    all return together.

    Args:
        trainer: what to train; it must not have taken a step yet.
        folder: where everything goes.
        resume: go on from the newest valid state in the folder, or begin where there is none.
        save_every: steps between states; one is also saved at the end, and when the run is interrupted.
        log_every: steps between rows of `log.csv`, each of means since the row before.
        sample_every: steps between sample sheets, drawn from the average of the weights where there is one;
            0 for none. Objectives without `sample` have none.
        samples: images on a sheet.
        progress: show a progress bar on standard error.
        tensorboard: write the rows and sheets for TensorBoard too, into the folder's `tensorboard`.

    Returns:
        How it ended.

    Raises:
        RunError: if the folder holds a run and `resume` is False, if the run there was begun with other
            settings or data, or if TensorBoard is asked for and not installed.
        StateError: if there are saved states but none is valid.
        DivergedError: if a loss or a weight is not finite; the message names the last good state.
        DiskFullError: if there is no room; nothing that was saved before is lost.
    """
    for name, value in (("save_every", save_every), ("log_every", log_every), ("samples", samples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    folder, settings, fabric = Path(folder), trainer.settings, trainer.fabric
    total = settings.steps
    # Asking the other processes makes a GPU wait, so there it is done now and then.
    ask_every = 1 if fabric.world_size == 1 or fabric.device.type == "cpu" else 20
    this = _Run(trainer, folder, samples)
    with Stop().listening() as stop, contextlib.ExitStack() as stack:
        this.open(resume, tensorboard)
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
                if sample_every and trainer.objective.sample and (step % sample_every == 0 or last):
                    this.draw()
                if step % save_every == 0 or last or number:
                    this.save()
        except DivergedError as error:
            where = first_does(fabric, lambda: last_state(folder))
            raise DivergedError(error.step, where, error.what) from None
        finally:
            trainer.objective.network.eval()
        return this.outcome(number)
