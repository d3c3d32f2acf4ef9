"""How to train, whatever is trained."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings that every training shares; a recipe adds its model's own.

    Attributes:
        steps: optimisation steps.
        batch_size: samples a step, over all processes together.
        learning_rate: the peak of the schedule.
        weight_decay: decoupled, as in AdamW.
        beta1: decay of the optimiser's running mean of gradients.
        beta2: decay of its running mean of squared gradients.
        warmup: share of the steps over which the learning rate rises linearly.
        decay: what follows: "cosine" falls to zero over half a cosine, "constant" stays.
        clip: largest norm of the gradient of all of a phase's parameters together; None leaves it.
        accumulate: parts in which each process works through its share of a batch, to save memory.
        ema: decay of the exponential moving average of the weights; None keeps none.
        seed: of initialisation, order and noise.
        precision: "32-true", or "bf16-mixed" for bfloat16 autocast with float32 weights.
        compile: run the networks through torch.compile.
        channels_last: keep convolution weights and images in the order that convolutions are fastest in.
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
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
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


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Returns the factor on the learning rate at a step (counted from 0): linear warm-up, then the decay."""
    rise = round(settings.warmup * settings.steps)
    if step < rise:
        return (step + 1) / rise
    if settings.decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, settings.steps - rise)))
