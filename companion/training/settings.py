"""How to train, whatever is trained."""

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from companion.devices import Precision

# Beyond these nobody trains; a slip of the keyboard does.
WHOLE = {
    "steps": (1, 10**9),
    "batch_size": (1, 10**7),
    "accumulate": (1, 10**6),
    "seed": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings that every training shares; a recipe adds its model's own.

    Attributes:
        steps: optimisation steps, 1 to 10⁹.
        batch_size: samples a step, over all processes together, 1 to 10⁷.
        learning_rate: the peak of the schedule.
        weight_decay: decoupled, as in AdamW; of matrices and kernels only (see `parameter_groups`).
        beta1: decay of the optimiser's running mean of gradients.
        beta2: decay of its running mean of squared gradients.
        warmup: share of the steps over which the learning rate rises linearly.
        decay: what follows: "cosine" falls to zero over half a cosine, "constant" stays.
        clip: largest norm of the gradient of all of a phase's parameters together; None leaves it.
        accumulate: parts in which each process works through its share of a batch, to save memory.
        ema: decay of the exponential moving average of the weights; None keeps none.
        seed: of initialisation, order and noise.
        precision: "32-true"; "bf16-mixed" for bfloat16 autocast with float32 weights; or "auto", which is the
            second on CUDA and the first on CPUs.
        compile: run the networks through torch.compile.
        channels_last: keep convolution weights and images in the order that convolutions are fastest in.

    Raises:
        ValueError: for a value that no training can have; the message names the setting.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    warmup: float = 0.05
    decay: Literal["cosine", "constant"] = "cosine"
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None
    seed: int = 0
    precision: Precision = "auto"
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        # First of all, and for the settings of recipes too: what is not a number is below and above nothing.
        for setting in dataclasses.fields(self):
            _require_finite(setting.name, getattr(self, setting.name))
        for name, (least, most) in WHOLE.items():
            number = _whole(name, getattr(self, name), least, most)
            object.__setattr__(self, name, number)  # NumPy's whole numbers are not JSON's
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")
        for name in ("beta1", "beta2", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, or be None, got {self.ema}.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, or None, got {self.clip}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}.")
        for name, known in (
            ("decay", ("cosine", "constant")),
            ("precision", ("auto", "32-true", "bf16-mixed")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )


def _require_finite(name: str, value: Any) -> None:
    """Refuses numbers that are infinite or none, alone or in a tuple, in the name of their setting."""
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}.")


def _whole(name: str, value: Any, least: int, most: int) -> int:
    """Returns a whole number within its bounds, or names its setting."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    found = int(value)
    if found < least:
        raise ValueError(f"{name} must be at least {least}, got {found}.")
    if found > most:
        raise ValueError(f"{name} must be at most {most:,}, got {found:,}.")
    return found


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Returns the factor on the learning rate at a step (counted from 0): linear warm-up, then the decay."""
    rise = round(settings.warmup * settings.steps)
    if step < rise:
        return (step + 1) / rise
    if settings.decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, settings.steps - rise)))


def same_schedule(settings: TrainingSettings, steps: int, done: int) -> bool:
    """Whether another number of steps in all would have given the steps already done the same learning rates."""
    other = dataclasses.replace(settings, steps=steps)
    return all(
        learning_rate_factor(step, settings) == learning_rate_factor(step, other)
        for step in range(done)
    )
