"""What the engine costs beside a loop written by hand, what feeding it costs, and a hundred kills.

Run with `make bench`, which switches off the type checks of the tests: they would count as the engine's. The two
loops take turns within one run, so that whatever else the machine does meets both.
"""

import contextlib
import importlib.util
import io
import json
import statistics
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from companion.data import load, to_float
from companion.randomness import initialisation, normal
from companion.training import Trainer, TrainingSettings, run, single_objective

WIDTH, BATCH = 16, 64


class Network(nn.Module):
    """A small convolutional variational autoencoder, as of chapter 10."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * WIDTH * 49, 32),
        )
        self.decoder = nn.Sequential(
            nn.Linear(16, 2 * WIDTH * 49),
            nn.Unflatten(1, (2 * WIDTH, 7, 7)),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1),
        )

    def loss(self, x, source):
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        z = mean + (0.5 * log_var).exp() * normal(mean.shape, source)
        error = F.mse_loss(self.decoder(z), x, reduction="sum") / len(x)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum() / len(x)
        return {"loss": error + kl, "error": error, "KL": kl}


def network() -> Network:
    with initialisation(0):
        return Network()


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine(data, steps: int):
    """The engine's steps, with all that it does besides: schedule, checks, reproducible noise."""
    model = network()
    objective = single_objective(model, lambda batch, source: model.loss(batch.images, source))
    return iter(Trainer(objective, data, TrainingSettings(steps=steps, batch_size=BATCH)))


def by_hand(data, steps: int):
    """The shortest loop that trains the same network."""
    model, generator = network(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    step = 0
    while True:
        order = torch.randperm(len(data.images), generator=generator)
        for indices in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = model.loss(to_float(data.images[indices]), generator)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            yield step


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.timeout(600)
def test_a_step_costs_at_most_five_per_cent_more_than_by_hand(capsys):
    data, turns, block = load("digits"), 120, 2
    loops = {"ours": engine(data, steps=10_000), "theirs": by_hand(data, steps=10_000)}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(turns + 5):
        for name in list(loops) if turn % 2 else reversed(list(loops)):
            start = time.process_time()
            for _ in range(block):
                next(loops[name])
            if turn >= 5:  # the first ones find caches cold
                times[name].append((time.process_time() - start) / block)
    # Each turn beside its neighbour: whatever else the machine did in that moment slowed both.
    ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
    middle = {name: statistics.median(found) for name, found in times.items()}
    with capsys.disabled():
        print(
            f"\nTraining step, convolutional VAE of width {WIDTH}, batch {BATCH}, one thread: engine "
            f"{1e3 * middle['ours']:.2f} ms, by hand {1e3 * middle['theirs']:.2f} ms ({100 * (ratio - 1):+.1f} %)"
        )
    assert ratio <= 1.05


@pytest.mark.usefixtures("_one_thread")
def test_a_run_in_a_folder_costs_little_more_than_its_steps(tmp_path, capsys):
    """Bar, log, and one state in 200 steps, where the default is one in 1,000."""
    data, steps = load("digits"), 200
    model = network()
    objective = single_objective(model, lambda batch, source: model.loss(batch.images, source))
    training = Trainer(objective, data, TrainingSettings(steps=steps, batch_size=BATCH))
    inside, advance = 0.0, training.advance

    def timed():
        nonlocal inside
        start = time.process_time()
        event = advance()
        inside += time.process_time() - start
        return event

    training.advance = timed
    start = time.process_time()
    with contextlib.redirect_stderr(
        io.StringIO()
    ):  # the bar is drawn, but not among the benchmark's results
        run(training, tmp_path / "run", save_every=200)
    share = 1 - inside / (time.process_time() - start)
    with capsys.disabled():
        print(f"\nA run's bar, log and states: {100 * share:.1f} % of its processor time")
    assert share < 0.1


@pytest.mark.usefixtures("_one_thread")
def test_data_are_never_the_bottleneck(capsys):
    """Fetching a batch from memory beside the step that uses it: indexing only, no loader and no copies to a device."""
    data = load("digits")
    model = network()
    objective = single_objective(model, lambda batch, source: model.loss(batch.images, source))
    training = Trainer(objective, data, TrainingSettings(steps=10_000, batch_size=BATCH))
    fetching, stepping = [], []
    for _ in range(100):
        start = time.process_time()
        training._batch(0, BATCH)
        middle = time.process_time()
        training.advance()
        fetching.append(middle - start)
        stepping.append(time.process_time() - middle)
    fetch, step = statistics.median(fetching), statistics.median(stepping)
    with capsys.disabled():
        print(
            f"\nFetching a batch: {1e6 * fetch:.0f} µs, {100 * fetch / step:.1f} % of a step; {BATCH / fetch:,.0f} "
            "images a second"
        )
    assert fetch < 0.02 * step


# ---------------------------------------------------------------- a hundred kills


def _load(name: str):
    path = Path(__file__).parents[1] / "training" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
def test_a_hundred_kills(tmp_path, capsys, rounds):
    """As the tests' twenty, at other moments."""
    wanted = rounds(100)
    shared, kills = _load("conftest"), _load("test_kills")
    server = shared.Server()
    try:
        reference = tmp_path / "reference"
        start = time.perf_counter()
        code, line = server.train(reference, **kills.OPTIONS)
        assert (code, json.loads(line)["step"]) == (0, kills.STEPS), line
        undisturbed = reference, time.perf_counter() - start
        start = time.perf_counter()
        hits = kills.kills(server, shared.final, undisturbed, tmp_path, wanted, seed=1)
        seconds = time.perf_counter() - start
    finally:
        server.close()
    with capsys.disabled():
        print(
            f"\n{len(hits)} runs killed at random moments, each resumed to the same bits; the last state was of step "
            f"{min(hits)} to {max(hits)} of {kills.STEPS}; {seconds:.0f} s"
        )
    assert len(hits) >= wanted
    # They spread over the run, as far as there are enough of them.
    assert len(set(hits)) >= min(kills.STEPS // 2, wanted // 2)
