"""Where networks compute, and in what precision: what this machine has, and what it is good at."""

import functools
import platform
import warnings
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "32-true", "bf16-mixed"]


def default_device() -> torch.device:
    """Returns the CUDA device if there is one, and the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_device(device: str | torch.device) -> torch.device:
    """Returns a device that this machine has.

    Args:
        device: as PyTorch names it, such as "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: if there is no such device here, or the name means none; the message says what there is.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"unknown device {str(device)!r}. Known: cpu, cuda, cuda:1 and the like."
        ) from error
    if found.type in ("cpu", "meta"):
        return found
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) < count:
            return found
        has = f"has {count} CUDA devices, counted from 0" if count else "has no CUDA device"
    else:
        module = getattr(torch, found.type, None)
        if module is not None and getattr(module, "is_available", lambda: False)():
            return found
        has = f"has none of the kind {found.type!r}"
    raise ValueError(
        f"device {str(device)!r} was asked for, but this machine {has}. Use "
        f"{str(default_device())!r}."
    )


# What multiplies bfloat16 in the processor itself, as PyTorch and /proc/cpuinfo spell it.
BFLOAT16 = {"avx512_bf16", "amx_bf16", "sve_bf16", "arm_bf16", "bf16", "svebf16"}


@functools.cache
def _processor() -> frozenset[str]:
    """Returns the abilities of the processor, by name; empty where nobody says."""
    ask = getattr(torch.cpu, "get_capabilities", None)  # PyTorch 2.11 and later
    if ask is not None:
        return frozenset(name for name, value in ask().items() if value is True)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    words = (line.partition(":") for line in lines)
    flags = (value.split() for key, _, value in words if key.strip() in ("flags", "Features"))
    return frozenset(next(flags, []))


def computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; where nothing is known of it, it is taken to."""
    abilities = _processor()
    if not abilities:
        return True
    # ATEN_CPU_CAPABILITY=avx2 imitates a processor that has less.
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    limited = x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return bool(abilities & BFLOAT16) and not limited


def resolve_precision(
    precision: Precision, device: str | torch.device
) -> Literal["32-true", "bf16-mixed"]:
    """Returns the precision that a setting means on a device: "auto" is bf16-mixed on CUDA, and 32-true elsewhere.

    Args:
        precision: "32-true", "bf16-mixed" or "auto".
        device: where the network computes, or its kind ("cpu", "cuda").

    Raises:
        ValueError: if the precision is none of the three.
    """
    if precision not in ("auto", "32-true", "bf16-mixed"):
        raise ValueError(f"precision must be 'auto', '32-true' or 'bf16-mixed', got {precision!r}.")
    if precision != "auto":
        return precision
    return "bf16-mixed" if torch.device(device).type == "cuda" else "32-true"


def warn_if_slow(precision: Precision, device: str | torch.device) -> None:
    """Warns of bfloat16 on a CPU that has to imitate it."""
    mixed = resolve_precision(precision, device) == "bf16-mixed"
    if mixed and torch.device(device).type == "cpu" and not computes_bfloat16():
        warnings.warn(
            "this CPU has no bfloat16 arithmetic (no AVX-512 BF16, no AMX): bf16-mixed is about 10 × slower here "
            "than float32. Use precision 'auto' or '32-true' (--precision 32-true).",
            stacklevel=3,
        )
