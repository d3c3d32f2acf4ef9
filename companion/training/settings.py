"""How to train, whatever is trained."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from companion import checks
from companion.devices import Precision

Decay = Literal["cosine", "constant"]

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
    decay: Decay = "cosine"
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
            checks.whole(least, most, **{name: getattr(self, name)})
            # NumPy's whole numbers are not JSON's.
            object.__setattr__(self, name, int(getattr(self, name)))
        checks.number(above=0, learning_rate=self.learning_rate)
        checks.number(0, 1, beta1=self.beta1, beta2=self.beta2, warmup=self.warmup)
        checks.number(0, weight_decay=self.weight_decay)
        if self.ema is not None:
            checks.number(-math.inf, 1, above=0, ema=self.ema)
        if self.clip is not None:
            checks.number(above=0, clip=self.clip)
        checks.one_of(get_args(Decay), decay=self.decay)
        checks.one_of(get_args(Precision), precision=self.precision)
        checks.flag(compile=self.compile, channels_last=self.channels_last)


def _require_finite(name: str, value: Any) -> None:
    """Refuses numbers that are infinite or none, alone or in a tuple, in the name of their setting."""
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(number, float):
            checks.number(**{name: number})


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
