"""From a laptop to a cluster: the processes that train together."""

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Literal

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from companion.devices import (
    Precision,
    check_device,
    default_device,
    resolve_precision,
    warn_if_slow,
)


def _given(devices: int, nodes: int) -> tuple[int, int]:
    """Returns how many processes a node, and nodes, there are: as asked, or as torchrun or SLURM has started them.

    Raises:
        ValueError: if both were asked for and differ, or several nodes are asked for and nothing has started them.
    """
    if TorchElasticEnvironment.detect():
        starter = "torchrun"
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        found = (local, int(os.environ["WORLD_SIZE"]) // local)
    elif SLURMEnvironment.detect():
        starter = "SLURM"
        per_node = os.environ.get("SLURM_NTASKS_PER_NODE", "1")
        found = (int(per_node), int(os.environ.get("SLURM_NNODES", "1")))
    else:
        if nodes > 1:
            # Without a launcher the first would wait for the others, and nobody starts them.
            raise ValueError(
                f"{nodes} nodes need a launcher that starts the command on each of them: torchrun --nnodes={nodes} "
                f"--nproc-per-node={devices} --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT …, or srun under SLURM."
            )
        return devices, nodes
    if (devices, nodes) not in ((1, 1), found):
        raise ValueError(
            f"{starter} has started {found[0]} processes on each of {found[1]} nodes, but {devices} devices and "
            f"{nodes} nodes are asked for. Leave them out, or start as many."
        )
    return found


def _join_after_restart(fabric: Fabric) -> None:
    """Joins the processes of a restart by torchrun, under keys of their own.

    torchrun keeps its store over a restart of its workers, and with it the addresses of the dead ones; a worker
    that is quicker than the first one would read those (https://github.com/pytorch/pytorch/issues/135712).
    Lightning finds the group made. The number of restarts is the same in all processes of one node only.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if restarts == "0" or not shared or fabric.world_size == 1:
        return
    if int(os.environ["LOCAL_WORLD_SIZE"]) != fabric.world_size:
        return
    cuda = fabric.device.type == "cuda"
    # Both stores are documented, but torch's module lists neither.
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        fabric.world_size,
        is_master=False,
    )
    prefixed = distributed.PrefixStore(f"restart-{restarts}", store)  # type: ignore[attr-defined]
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        store=prefixed,
        rank=int(os.environ["RANK"]),
        world_size=fabric.world_size,
        device_id=fabric.device if cuda else None,
    )
    atexit.register(distributed.destroy_process_group)


@contextlib.contextmanager
def _ctrl_c_ends() -> Iterator[None]:
    """Lets Ctrl-C end the process at once.

    Waiting for the other processes happens outside Python, which would not come to raise `KeyboardInterrupt`.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def new_fabric(accelerator: str, devices: int, nodes: int, precision: Precision) -> Fabric:
    """Returns a fabric whose processes are not started yet."""
    precision = resolve_precision(precision, accelerator)
    if precision != "bf16-mixed":
        return Fabric(
            accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision
        )
    # Asked for by name, mixed precision is announced on standard error, which a notebook would show.
    plugin = MixedPrecision("bf16-mixed", device=accelerator)
    return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, plugins=[plugin])


def launch(
    devices: int = 1,
    nodes: int = 1,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision = "auto",
) -> Fabric:
    """Starts the processes that train together, or joins those that torchrun or SLURM has started.

    Under torchrun and SLURM the numbers of devices and nodes are theirs. Otherwise, with several devices, this
    starts the command that is running once more for each of them; several nodes need torchrun or SLURM. For
    restarts over several nodes, start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or restarted workers can
    find the addresses of the dead ones. While the processes wait for one another, Ctrl-C ends them at once.

    Args:
        devices: processes on each node, each with a device of its own; on CPUs the number of processes.
        nodes: machines.
        accelerator: "cpu", "cuda" or "auto", which is CUDA where there is one.
        precision: as in the settings: "auto" is bf16-mixed on CUDA and 32-true on CPUs. A CPU that would have to
            imitate bfloat16 is warned of.

    Returns:
        The fabric for `Trainer` and the evaluation; `fabric.is_global_zero` is True in one process only.

    Raises:
        ValueError: if there are fewer devices than asked for, torchrun or SLURM has started another number, or
            nothing has started the several nodes that are asked for.
    """
    if devices < 1 or nodes < 1:
        raise ValueError(f"at least one device and one node are needed, got {devices} and {nodes}.")
    devices, nodes = _given(devices, nodes)
    kind = default_device().type if accelerator == "auto" else accelerator
    check_device(kind)
    try:
        fabric = new_fabric(kind, devices, nodes, precision)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot compute on {devices} × {nodes} of {kind!r} in {precision!r}: {error}"
        ) from error
    with _ctrl_c_ends():
        _join_after_restart(fabric)
        fabric.launch()
    if fabric.is_global_zero:
        warn_if_slow(precision, kind)
    return fabric
