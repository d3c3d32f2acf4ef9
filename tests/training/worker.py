"""Trainings in processes of their own, which the tests then kill.

    python worker.py train OPTIONS     trains as the JSON says
    python worker.py serve             forks a training for every line of JSON and says how it ended

Forking from a process that has imported everything takes milliseconds, where starting Python takes seconds.
"""

import json
import os
import resource
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from companion.data import ImageDataset
from companion.gan import GAN, GANConfig
from companion.randomness import initialisation, normal
from companion.training import (
    Objective,
    Phase,
    Trainer,
    TrainingSettings,
    gather,
    launch,
    run,
    single_objective,
)
from companion.vae_gan import VAEGAN, VAEGANConfig


def images(count: int = 96, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random images in bytes, and labels."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(count, 1, 3, 3, generator=generator)
    fine = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    return (fine * 255).to(torch.uint8), torch.arange(count) % 10


def dataset(count: int = 96, size: int = 8) -> ImageDataset:
    """The same as a data set."""
    return ImageDataset(*images(count, size), tuple("0123456789"), "smooth", "train")


class Everything(nn.Module):
    """All that makes an exact resume hard: channels last, batch statistics, dropout, two players, a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(4, 8 * 16),
            nn.Unflatten(1, (8, 4, 4)),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.ConvTranspose2d(8, 1, 4, 2, 1),
        )
        self.critic = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.SiLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(128, 1)
        )
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.tied = nn.Linear(4, 4)
        self.tied_too = self.tied

    def sample(self, n, source):
        return self.generator(self.tied(normal((n, 4), source)) * self.scale).tanh()

    def critic_loss(self, x, source):
        fake = self.sample(len(x), source).detach()
        loss = F.softplus(self.critic(fake)).mean() + F.softplus(-self.critic(x)).mean()
        return {"loss": loss, "fake": self.critic(fake).mean()}

    def generator_loss(self, x, source):
        return {"loss": F.softplus(-self.critic(self.sample(len(x), source))).mean()}


def everything() -> Objective:
    with initialisation(0):
        network = Everything()
    critic = list(network.critic.parameters())
    rest = [*network.generator.parameters(), network.scale, *network.tied.parameters()]
    return Objective(
        network,
        (
            Phase("critic", critic, lambda b, s: network.critic_loss(b.images, s)),
            Phase(
                "generator",
                rest,
                lambda b, s: network.generator_loss(b.images, s),
                learning_rate=2e-3,
                every=2,
            ),
        ),
        sample=lambda network, n, source: network.sample(n, source),
    )


class Denoiser(nn.Module):
    """Treats every sample for itself, as two processes need it to equal one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 64))

    def loss(self, x, source):
        flat = x.flatten(1)
        noisy = flat + 0.5 * normal(flat.shape, source, flat.device)
        return {"loss": (self.layers(noisy) - flat).square().mean()}

    def sample(self, n, source):
        return self.layers(normal((n, 64), source)).tanh().view(n, 1, 8, 8)


def denoiser() -> Objective:
    with initialisation(0):
        network = Denoiser()
    return single_objective(
        network,
        lambda b, s: network.loss(b.images, s),
        lambda network, n, source: network.sample(n, source),
    )


def players(network: nn.Module, **losses) -> Objective:
    """An objective of parts of a network that take their turns, each with its loss of images and randomness."""
    phases = [
        Phase(name, list(getattr(network, name).parameters()), lambda b, s, f=f: f(b.images, s))
        for name, f in losses.items()
    ]
    return Objective(network, tuple(phases), lambda network, n, source: network.sample(n, source))


def gan() -> Objective:
    with initialisation(0):
        network = GAN(
            GANConfig(
                size=16,
                latent_dim=4,
                generator_width=8,
                discriminator_width=8,
                gradient_penalty=1.0,
            )
        )
    return players(
        network,
        discriminator=network.discriminator_loss,
        generator=lambda x, source: network.generator_loss(len(x), source),
    )


def vae_gan() -> Objective:
    with initialisation(0):
        network = VAEGAN(
            VAEGANConfig(
                size=16, latent_dim=4, encoder_width=4, decoder_width=8, discriminator_width=8
            )
        )
    return players(
        network,
        discriminator=network.discriminator_loss,
        encoder=network.encoder_loss,
        decoder=network.decoder_loss,
    )


OBJECTIVES = {"everything": everything, "denoiser": denoiser, "gan": gan, "vae-gan": vae_gan}
SIDES = {"gan": 16, "vae-gan": 16}
SETTINGS = {
    "gan": {"ema": 0.9, "beta1": 0.5},
    "vae-gan": {"ema": 0.9, "beta1": 0.5},
    "everything": {"channels_last": True, "ema": 0.99, "clip": 1.0, "weight_decay": 0.01},
    "denoiser": {"ema": 0.9, "clip": 0.5},
}


def trainer(name: str, fabric=None, start=None, **settings) -> Trainer:
    chosen = {"steps": 30, "batch_size": 16} | SETTINGS[name] | settings
    return Trainer(
        OBJECTIVES[name](),
        dataset(size=SIDES.get(name, 8)),
        TrainingSettings(**chosen),
        fabric,
        start,
    )


def die_at_call(number: int) -> None:
    """Kills this process just before its n-th call of what saving a state asks of the system."""
    calls = 0

    def deadly(function):
        def called(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return called

    for name in ("fsync", "replace", "unlink", "chmod"):
        setattr(os, name, deadly(getattr(os, name)))


def die_once(training: Trainer, flag: Path, step: int, rank: int) -> None:
    """Kills the process of one rank at one step, the first time it gets there."""
    advance = training.advance

    def deadly():
        if training.step == step and training.fabric.global_rank == rank and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return advance()

    training.advance = deadly


def evaluate(training: Trainer, path: str) -> None:
    """Samples and measures with as many processes as there are."""
    from companion.evaluation import Evaluator

    evaluator = Evaluator(training.fabric, batch_size=7)
    drawn = evaluator.draw(lambda n, source: training.network.sample(n, source), 40)
    errors = evaluator.each(
        lambda batch, s: training.network.loss(batch.images, s)["loss"].expand(len(batch)),
        dataset(),
    )
    if training.fabric.is_global_zero:
        torch.save({"drawn": drawn, "errors": errors}, path)


def train(options: dict) -> dict:
    """Runs a training; returns its outcome on rank zero, and nothing on the others."""
    options = dict(options)
    once = options.pop("die_once", None)
    if once and Path(once["flag"]).exists() and os.environ["RANK"] == "0":
        # Rank zero comes last, so that the others could find what it said before the restart.
        time.sleep(3)
    fabric = launch(options.pop("devices", 1), accelerator="cpu")
    training = trainer(
        options.pop("objective", "everything"), fabric, **options.pop("settings", {})
    )
    if number := options.pop("die_at_call", 0):
        die_at_call(number)
    if once:
        die_once(training, Path(once["flag"]), once["step"], once["rank"])
    if largest := options.pop("largest_file", 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    measured = options.pop("evaluate", None)
    outcome = run(training, options.pop("folder"), **{"progress": False, "log_every": 5} | options)
    if measured:
        evaluate(training, measured)
    return {"step": outcome.step, "signal": outcome.signal} if fabric.is_global_zero else {}


class Uneven(nn.Module):
    """Parameters that a loss reaches in all processes, in one of them, or in none; and batch statistics of each."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.everywhere = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.somewhere = nn.Parameter(torch.tensor([3.0, 4.0, 5.0]))
        self.nowhere = nn.Parameter(torch.tensor([6.0]))
        self.coarse = nn.Parameter(torch.tensor([7.0], dtype=torch.bfloat16))
        self.norm = nn.BatchNorm2d(1, affine=False)
        self.norm.running_mean += 10 * rank
        self.rank = rank

    def loss(self, batch, source):
        loss = (1 + self.rank) * self.everywhere.sum() + 0 * self.norm(batch.images).mean()
        if self.rank == 1:
            loss = loss + 6 * self.somewhere.sum() + self.coarse.float().sum()
        return {"loss": loss}


def ranks(options: dict) -> dict:
    """Writes what each of two processes has after what they tell one another."""
    warnings.simplefilter("error", FutureWarning)
    fabric = launch(2, accelerator="cpu")
    network = Uneven(fabric.global_rank)
    objective = single_objective(network, network.loss)
    settings = TrainingSettings(steps=3, batch_size=16, weight_decay=0.5, warmup=0.0)
    training = Trainer(objective, dataset(), settings, fabric)
    found = {"buffers at first": network.norm.running_mean.clone()}
    for _ in training:
        pass
    found |= {
        "gradients": {name: p.grad for name, p in network.named_parameters()},
        "buffers": dict(network.norm.named_buffers()),
        "parameters": {name: p.detach() for name, p in network.named_parameters()},
        "gathered": gather(fabric, torch.full((2, 3), fabric.global_rank)),
        "number": gather(fabric, torch.tensor(fabric.global_rank)),
    }
    torch.save(found, Path(options["folder"]) / f"{fabric.global_rank}.pt")
    return {}


def command(options: dict) -> dict:
    """Runs the command line with some words, in the folder of the file where it says what it prints."""
    from companion.cli import main

    os.chdir(Path(options["folder"]).parent)
    with open(f"{options['folder']}.{os.environ['SLURM_PROCID']}", "w") as file:
        os.dup2(file.fileno(), 1)
        code = main(options["words"])
        sys.stdout.flush()
    return {"code": code}


TASKS = {"train": train, "ranks": ranks, "command": command}


def slurm(rank: int, port: int) -> dict[str, str]:
    """What srun tells one of two tasks."""
    return {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "train",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork(options: dict, stderr: str, environment: dict[str, str]) -> int:
    """Does a task in a process of its own, and returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment)
        with open(stderr, "a") as file:
            os.dup2(file.fileno(), 2)
        print(json.dumps(TASKS[options.pop("task", "train")](options)), file=sys.stderr, flush=True)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def serve() -> None:
    trainer("everything").advance()  # so that a child finds all lazy imports done
    print("ready", flush=True)
    for line in sys.stdin:
        options = json.loads(line)
        delay, stderr = options.pop("kill_after", None), options.pop("stderr")
        if options.pop("slurm", False):
            port = free_port()
            # What the second one says goes to a file of its own.
            files = (stderr, f"{stderr}.1")
            children = [fork(options, file, slurm(i, port)) for i, file in enumerate(files)]
        else:
            children = [fork(options, stderr, {})]
        if delay is None:
            print(children[0], flush=True)
        else:
            time.sleep(delay)
            os.kill(children[0], signal.SIGKILL)  # not waited for yet, so the number is its own
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(next((code for code in codes if code), 0), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "serve":
        serve()
    else:
        result = train(json.loads(sys.argv[2]))
        if result:
            print(json.dumps(result), flush=True)
