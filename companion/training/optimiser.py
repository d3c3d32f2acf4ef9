"""The optimiser: which parameters decay, and moments that fit them before they are loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.training.state import StateError

# Parameters of these names are added to or stand for something; they multiply nothing.
NOT_DECAYED = ("position", "token", "embedding")


def decayed(network: nn.Module) -> set[int]:
    """Returns the `id`s of the parameters that weight decay applies to: matrices and the kernels of convolutions.

    Decay pulls towards zero what multiplies an input. Biases, the parameters of normalisations (modules with "Norm" in
    the names of their classes) and all others with fewer than two dimensions are left alone, and so are embeddings:
    the weights of `nn.Embedding`, and parameters whose own names speak of positions, tokens or embeddings.
    """
    spared = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Embedding) or "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    return {
        id(parameter)
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2
        and id(parameter) not in spared
        and not any(word in name.rpartition(".")[2] for word in NOT_DECAYED)
    }


def parameter_groups(
    network: nn.Module, parameters: Sequence[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Returns an optimiser's groups: those that decay (see `decayed`), then the others; one group without decay.

    Args:
        network: which names the parameters.
        parameters: those to be trained.
        weight_decay: of the first group.
    """
    if not weight_decay:
        return [{"params": list(parameters), "weight_decay": 0.0}]
    chosen = decayed(network)
    groups = [
        {
            "params": [p for p in parameters if (id(p) in chosen) == decays],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    return [group for group in groups if group["params"]]


# --- Loading ------------------------------------------------------------------------------------------------------


def require(right: bool, what: str) -> None:
    """Raises `StateError` unless something is right."""
    if not right:
        raise StateError(f"{what}.")


def check_tensors(found: Any, own: Mapping[str, Tensor], what: str) -> None:
    """Raises `StateError` unless tensors have the names, shapes and types of one's own."""
    require(isinstance(found, Mapping), f"the saved {what} are not named tensors")
    if set(found) != set(own):
        odd = sorted(map(str, set(found) ^ set(own)))
        some = ", ".join(repr(name) for name in odd[:3]) + (" and more" if len(odd) > 3 else "")
        raise StateError(f"the saved {what} are of another network: {some} is in one of them only.")
    for name, tensor in own.items():
        _check_tensor(found[name], tensor, f"{what} {name!r}")


def _check_tensor(found: Any, own: Tensor, what: str) -> None:
    require(isinstance(found, Tensor), f"the saved {what} is no tensor")
    if (found.shape, found.dtype) != (own.shape, own.dtype):
        raise StateError(
            f"the saved {what} is of another network: {tuple(found.shape)} of {found.dtype}, here "
            f"{tuple(own.shape)} of {own.dtype}."
        )


def moments_of(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns what an optimiser remembers: its moments, and the numbers of the parameters in each of its groups."""
    state = optimiser.state_dict()
    groups = [group["params"] for group in state["param_groups"]]
    return {"moments": state["state"], "groups": groups}


def check_moments(found: Any, optimiser: torch.optim.Optimizer, phase: str) -> None:
    """Raises `StateError` unless saved moments fit an optimiser's parameters.

    The fused update walks through memory by the parameter's size, whatever that of the moments.
    """
    what = f"optimiser of the phase {phase!r}"
    require(
        isinstance(found, Mapping) and set(found) == {"moments", "groups"},
        f"the saved {what} is no optimiser's state",
    )
    moments = found["moments"]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    require(
        found["groups"] == moments_of(optimiser)["groups"]
        and isinstance(moments, Mapping)
        and set(moments) <= set(range(len(parameters))),
        f"the saved {what} has other parameters",
    )
    for number, own in moments.items():
        require(
            isinstance(own, Mapping) and set(own) == {"step", "exp_avg", "exp_avg_sq"},
            f"the saved {what} has other moments than AdamW's",
        )
        _check_tensor(own["step"], torch.zeros(()), f"step in the {what}")
        require(
            bool(own["step"] >= 0) and bool(torch.isfinite(own["step"])),
            f"the saved step in the {what} is {own['step']}",
        )
        for name in ("exp_avg", "exp_avg_sq"):
            _check_tensor(own[name], parameters[number], f"moment {name} in the {what}")


def load_moments(found: Mapping[str, Any], optimiser: torch.optim.Optimizer) -> None:
    """Takes over saved moments, which `check_moments` has found to fit; all settings stay the optimiser's own."""
    own = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": dict(found["moments"]), "param_groups": own})
    for parameter, moments in optimiser.state.items():
        for key, value in moments.items():
            # A copy of its own; and, since the fused update walks through memory, in the parameter's order.
            same = key != "step" and value.shape == parameter.shape
            moments[key] = torch.empty_like(parameter).copy_(value) if same else value.clone()
