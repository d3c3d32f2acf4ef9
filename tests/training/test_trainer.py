"""The loop: equal to one written by hand, exact to resume, and honest about what goes wrong."""

import copy
import math
import os
import shutil
from dataclasses import dataclass, field, replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from companion.data import ImageDataset, load, to_float
from companion.data.batch import Batch
from companion.data.folders import FolderImages
from companion.randomness import Rows, derive, initialisation, normal
from companion.training import (
    EMA,
    BatchOrder,
    DivergedError,
    Objective,
    Phase,
    StateError,
    Trainer,
    TrainingSettings,
    decayed,
    learning_rate_factor,
    parameter_groups,
    single_objective,
    train,
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def state_bits(value) -> object:
    """A nested state with its tensors as bytes, to be compared with ==."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: state_bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [state_bits(item) for item in value]
    return value


# ---------------------------------------------------------------- against a loop written by hand


@pytest.mark.parametrize("clip", [None, 0.3])
def test_a_loop_written_by_hand_gives_the_same_bits(worker, clip):
    data, settings = (
        worker.dataset(),
        TrainingSettings(
            steps=20,
            batch_size=16,
            learning_rate=3e-3,
            weight_decay=0.1,
            beta2=0.95,
            clip=clip,
            ema=0.9,
        ),
    )
    objective = worker.denoiser()
    trainer = Trainer(objective, data, settings)
    losses = [event.loss for event in trainer]

    network = worker.denoiser().network
    average = copy.deepcopy(network)
    weights = [p for p in network.parameters() if p.ndim == 2]
    biases = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), fused=True)
    order = BatchOrder(96, 16, 0)
    expected = []
    for step in range(20):
        images = data.images[order.indices(step)]
        loss = network.loss(to_float(images), derive(0, "loss", step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * learning_rate_factor(step, settings)
        optimiser.step()
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        expected.append(float(loss.detach()))
    assert losses == expected
    assert state_bits(objective.network.state_dict()) == state_bits(network.state_dict())
    assert state_bits(trainer.network.state_dict()) == state_bits(average.state_dict())


def test_the_short_form_is_the_long_one(worker):
    settings = TrainingSettings(steps=6, batch_size=16)
    network, shown = worker.denoiser().network, []
    losses = train(
        network,
        lambda b, s: network.loss(b.images, s),
        worker.dataset(),
        settings,
        every=2,
        show=lambda progress: shown.append((progress.step, progress.loss)),
    )
    trainer = Trainer(worker.denoiser(), worker.dataset(), settings)
    assert losses == [event.loss for event in trainer]
    assert shown == [(step, losses[step - 1]) for step in (2, 4, 6)]
    assert not network.training


def test_accumulating_over_parts_gives_the_same_training(worker):
    """Up to the order of sums: the noise is that of the whole batch."""
    whole, parts = (worker.trainer("denoiser", steps=10, accumulate=n) for n in (1, 4))
    losses = [[event.loss for event in trainer] for trainer in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(
        whole.network.state_dict(), parts.network.state_dict(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_dataset_gives_floats_and_labels_by_name_and_tensors_stay_what_they_are(channels_last):
    """The very samples of the order, in [−1, 1]."""
    digits = load("digits")[:100]
    seen = []

    def loss(batch, source):
        seen.append(batch)
        return {"loss": network(torch.ones(1, 1)).square().mean()}

    network = nn.Linear(1, 1)
    settings = TrainingSettings(steps=1, batch_size=10, channels_last=channels_last)
    odd = torch.rand(100, 2, 3, 3)
    for data in (digits, (digits.images, digits.labels, odd)):
        list(Trainer(single_objective(network, loss), data, settings))
    chosen = BatchOrder(100, 10, 0).indices(0)
    batch, rows = seen
    assert isinstance(batch, Batch)
    assert torch.equal(batch.images, to_float(digits.images[chosen]))
    assert torch.equal(batch.labels, digits.labels[chosen])
    assert (batch.captions, batch.tokens) == (None, None)
    expected = (digits.images[chosen], digits.labels[chosen], odd[chosen])
    assert all(torch.equal(a, b) for a, b in zip(rows, expected, strict=True))
    for images in (batch.images, rows[2]):
        assert images.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )


def test_captions_stay_with_their_images():
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 2, 2).contiguous()
    names = tuple(f"{i}.png" for i in range(12))
    captions = tuple(f"picture {i}" for i in range(12))
    data = FolderImages(
        images,
        torch.zeros(12, dtype=torch.int64),
        ("all",),
        "mine",
        "all",
        files=names,
        captions=captions,
    )
    network, seen = nn.Linear(1, 1), []

    def loss(batch, source):
        numbers = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        seen.extend(zip(numbers, batch.captions, strict=True))
        return {"loss": network.weight.square().sum()}

    settings = TrainingSettings(steps=3, batch_size=4)
    list(Trainer(single_objective(network, loss), data, settings))
    assert sorted(seen) == [(i, f"picture {i}") for i in range(12)]


@dataclass(frozen=True, eq=False, repr=False)
class Tokenised(ImageDataset):
    """Images with the tokens of a tokeniser beside them."""

    tokens: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def batch_at(self, positions, device=None):
        return replace(super().batch_at(positions, device), tokens=self.tokens[positions])


@pytest.mark.parametrize("channels_last", [False, True])
def test_whatever_a_dataset_has_reaches_the_loss(channels_last):
    numbers = torch.arange(12)
    images = numbers.to(torch.uint8).view(12, 1, 1, 1).repeat(1, 2, 2, 2)
    tokens = torch.stack([numbers, numbers + 100], dim=1)
    data = Tokenised(images, numbers % 3, ("a", "b", "c"), "mine", "all", tokens=tokens)
    network, seen = nn.Linear(1, 1), []

    def loss(batch, source):
        wanted = ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().long()
        assert torch.equal(batch.tokens, tokens[wanted])
        assert torch.equal(batch.labels, wanted % 3)
        order = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=order)
        seen.extend(wanted.tolist())
        return {"loss": network.weight.square().sum()}

    settings = TrainingSettings(steps=3, batch_size=4, channels_last=channels_last)
    list(Trainer(single_objective(network, loss), data, settings))
    assert sorted(seen) == list(range(12))
    assert torch.equal(data.batch([3, -1]).tokens, tokens[[3, 11]])


# ---------------------------------------------------------------- phases


class Two(nn.Module):
    """Two weights that both enter both losses."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.b = nn.Parameter(torch.tensor(2.0))

    def loss(self, sign: float):
        return lambda batch, source: {"loss": sign * self.a * self.b}


def two(every: int = 1, rate: float | None = None) -> tuple[Two, Trainer]:
    network = Two()
    phases = (
        Phase("down", [network.a], network.loss(1.0)),
        Phase("up", [network.b], network.loss(-1.0), learning_rate=rate, every=every),
    )
    settings = TrainingSettings(
        steps=4, batch_size=1, learning_rate=0.1, warmup=0.0, decay="constant"
    )
    return network, Trainer(Objective(network, phases), (torch.zeros(4),), settings)


def test_a_phase_trains_its_own_parameters_only():
    network, trainer = two()
    trainer.advance()
    # Adam's first step is the learning rate, down in a and, as the second loss is −ab, up in b.
    assert network.a.item() == pytest.approx(0.9)
    assert network.b.item() == pytest.approx(2.1)
    # In turn: the second phase saw what the first had done, and gave no gradient to a.
    assert float(network.a.grad) == 2.0
    assert float(network.b.grad) == pytest.approx(-0.9)


def test_a_phase_of_every_second_step_and_its_own_rate():
    network, trainer = two(every=2, rate=0.5)
    seen = []
    for event in trainer:
        seen.append((round(network.b.item(), 3), "up/loss" in event.values))
        assert event["down/loss"] == event.loss
    # Adam's bias-corrected step is about the rate as long as the gradient hardly changes.
    assert [value for value, _ in seen] == pytest.approx([2.5, 2.5, 3.0, 3.0], abs=0.06)
    assert [turn for _, turn in seen] == [True, False, True, False]


def test_objectives_that_make_no_sense():
    phase = Phase("a", [nn.Parameter(torch.ones(1))], lambda b, s: {})
    with pytest.raises(ValueError, match=r"phases with different names, got \[\]"):
        Objective(nn.Linear(1, 1), ())
    with pytest.raises(ValueError, match=r"different names, got \['a', 'a'\]"):
        Objective(nn.Linear(1, 1), (phase, phase))
    with pytest.raises(ValueError, match="at every step"):
        Objective(nn.Linear(1, 1), (Phase("a", [], lambda b, s: {}, every=2),))


def test_a_loss_without_a_loss():
    network = nn.Linear(1, 1)
    objective = single_objective(network, lambda b, s: {"mse": network(b[0]).mean()})
    trainer = Trainer(objective, (torch.ones(4, 1),), TrainingSettings(batch_size=4))
    with pytest.raises(ValueError, match=r"phase 'loss' returned \['mse'\], but no 'loss'"):
        trainer.advance()


# ---------------------------------------------------------------- randomness and resuming


def test_global_randomness_is_used_and_put_back(worker):
    """Dropout draws from torch's own generator: a function of seed and step here, and without a trace."""
    before = torch.default_generator.get_state()
    first = worker.trainer("everything", steps=3)
    list(first)
    assert torch.equal(torch.default_generator.get_state(), before)
    torch.rand(5)
    second = worker.trainer("everything", steps=3)
    list(second)
    assert state_bits(first.state_dict()) == state_bits(second.state_dict())
    other = worker.trainer("everything", steps=3, seed=1)
    list(other)
    assert state_bits(first.state_dict()) != state_bits(other.state_dict())


@pytest.mark.parametrize("name", ["everything", "denoiser"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_state_goes_on_exactly(worker, name, stop):
    """Channels last, the fused optimiser, dropout, batch statistics, averages and two phases included."""
    whole = worker.trainer(name, steps=8)
    list(whole)
    part = worker.trainer(name, steps=8)
    for _ in range(stop):
        part.advance()
    saved = copy.deepcopy(part.state_dict())
    kept = state_bits(saved)
    rest = worker.trainer(name, steps=8)
    with torch.no_grad():
        for parameter in rest.objective.network.parameters():
            parameter.add_(1.0)  # so that nothing is right by chance
    rest.load_state_dict(saved)
    list(rest)
    assert rest.step == 8
    assert state_bits(rest.state_dict()) == state_bits(whole.state_dict())
    assert state_bits(saved) == kept, "training on must not change what was loaded"


def test_evaluation_between_steps_changes_nothing(worker):
    plain, watched = (worker.trainer("everything", steps=5) for _ in range(2))
    list(plain)
    for _ in watched:
        watched.objective.network.eval()
        watched.network.sample(3, derive(5))
    assert state_bits(plain.state_dict()) == state_bits(watched.state_dict())


def test_states_of_something_else(worker):
    saved = worker.trainer("everything").state_dict()
    with pytest.raises(StateError, match=r"phases \['critic', 'generator'\] and an average"):
        worker.trainer("denoiser").load_state_dict(saved)
    with pytest.raises(StateError, match="an average of the weights, which is not"):
        worker.trainer("denoiser", ema=None).load_state_dict(
            worker.trainer("denoiser").state_dict()
        )
    network = nn.Linear(2, 2)
    other = Trainer(
        single_objective(network, lambda b, s: {}),
        (torch.ones(4, 2),),
        TrainingSettings(batch_size=4, ema=0.9),
    )
    with pytest.raises(
        StateError, match=r"weights are of another network: 'bias', .* and more is in one"
    ):
        other.load_state_dict(worker.trainer("denoiser").state_dict())


def leaves(value, path=()):
    """All places of a nested state, tensors and numbers alike."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield path, key
            yield from leaves(item, (*path, key))


def branched(state, path):
    """A nested state that shares all with another but the dictionaries along a path; and the last of these."""
    root = parent = dict(state)
    for key in path:
        parent[key] = dict(parent[key])
        parent = parent[key]
    return root, parent


WRONG = {
    "missing": lambda parent, key: parent.pop(key),
    "nothing": lambda parent, key: parent.__setitem__(key, None),
    "a word": lambda parent, key: parent.__setitem__(key, "word"),
    "a negative number": lambda parent, key: parent.__setitem__(key, -1),
    "another shape": lambda parent, key: parent.__setitem__(key, torch.zeros(3, 1, 2)),
    "no number": lambda parent, key: parent.__setitem__(key, torch.tensor(math.nan)),
    "another type": lambda parent, key: parent.__setitem__(
        key, parent[key].double() if isinstance(parent[key], torch.Tensor) else 1.5
    ),
    "a list of tensors": lambda parent, key: parent.__setitem__(
        key, [torch.zeros(2), [torch.ones(2)]]
    ),
    "one more": lambda parent, key: parent.__setitem__("more", 1),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_state_with_anything_wrong_is_refused_before_anything_is_loaded(worker, how):
    """Wherever in it, and above all the moments: the fused optimiser would write beyond a smaller one's end."""
    trained = worker.trainer("everything", steps=4)
    for _ in range(2):
        trained.advance()
    good = copy.deepcopy(trained.state_dict())
    fresh = worker.trainer("everything", steps=4)
    before = state_bits(fresh.state_dict())
    refused = 0
    for path, key in leaves(good):
        state, parent = branched(good, path)
        old = parent[key]
        WRONG[how](parent, key)
        number = isinstance(old, torch.Tensor) and old.ndim == 0 and old.is_floating_point()
        if how == "no number" and number and (path[0], key) != ("optimisers", "step"):
            continue  # of the right shape and type, as training may make it
        if how == "missing" and path and path[-1] == "moments":
            continue  # a parameter that no loss has reached yet has none
        with pytest.raises(StateError):
            fresh.load_state_dict(state)
        refused += 1
    assert refused > 60
    assert state_bits(fresh.state_dict()) == before
    fresh.load_state_dict(good)
    assert state_bits(fresh.state_dict()) == state_bits(good)


def test_an_optimiser_keeps_the_settings_of_its_training(worker):
    """A state holds moments only, so what it was trained with cannot come back by it."""
    saved = copy.deepcopy(worker.trainer("denoiser", steps=3).state_dict())
    assert set(saved["optimisers"]["loss"]) == {"moments", "groups"}
    other = worker.trainer("denoiser", steps=3, beta2=0.9, weight_decay=0.0)
    other.load_state_dict(saved)
    assert all(g["betas"] == (0.9, 0.9) for g in other._optimisers["loss"].param_groups)


# ---------------------------------------------------------------- beginning with given weights


def test_a_training_begins_with_given_weights(worker):
    """As stored in half precision; the average, too."""
    first = worker.trainer("everything", steps=3)
    list(first)
    start = {
        name: tensor.half() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in first.network.state_dict().items()
    }
    second = worker.trainer("everything", steps=3, start=start)
    for network in (second.objective.network, second.network):
        found = network.state_dict()
        assert all(torch.equal(found[name], start[name].to(found[name].dtype)) for name in start)
    assert second.objective.network.scale.dtype == torch.float32
    assert second.start_sha256 != worker.trainer("everything").start_sha256 is None
    changed = {name: tensor.clone() for name, tensor in start.items()}
    changed["scale"] += 1
    third = worker.trainer("everything", steps=3, start=changed)
    assert third.start_sha256 != second.start_sha256
    assert worker.trainer("everything", start=dict(reversed(start.items()))).start_sha256 == (
        second.start_sha256
    )


def test_weights_of_another_network_are_refused_by_name(worker):
    own = worker.denoiser().network.state_dict()
    fewer = {name: tensor for name, tensor in own.items() if name != "layers.0.bias"}
    with pytest.raises(ValueError, match=r"of another network: 'layers\.0\.bias' is in one"):
        worker.trainer("denoiser", start=fewer)
    with pytest.raises(ValueError, match=r"'layers\.0\.bias' has the shape \(2,\), here \(32,\)"):
        worker.trainer("denoiser", start=own | {"layers.0.bias": torch.ones(2)})


# ---------------------------------------------------------------- weight decay


def test_decay_is_of_matrices_and_kernels():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.conv = nn.Conv2d(1, 2, 3)
            self.norm = nn.LayerNorm((3, 3))
            self.batch = nn.BatchNorm2d(2)
            self.words = nn.Embedding(5, 2)
            self.matrix = nn.Parameter(torch.ones(2, 2))
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.encoder_positions = nn.Parameter(torch.ones(4, 2))
            self.mask_token = nn.Parameter(torch.ones(1, 2))
            self.tied = nn.Linear(2, 5, bias=False)
            self.tied.weight = self.words.weight

    network = Network()
    chosen = decayed(network)
    names = {name for name, p in network.named_parameters() if id(p) in chosen}
    assert names == {"linear.weight", "conv.weight", "matrix"}
    everything = list(network.parameters())
    groups = parameter_groups(network, everything, 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [len(g["params"]) for g in groups] == [3, len(everything) - 3]
    assert len(parameter_groups(network, everything, 0.0)) == 1
    assert len(parameter_groups(network, [network.scale], 0.1)) == 1


def test_only_what_decays_is_pulled_towards_zero():
    """With a loss that reaches nothing by more than its gradient of zero, decay alone moves: w ← (1 − lr·λ)·w."""
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}

    def loss(batch, source):
        return {"loss": sum(p.sum() for p in network.parameters()) * 0.0}

    settings = TrainingSettings(
        steps=3, batch_size=2, learning_rate=0.1, weight_decay=0.5, warmup=0.0, decay="constant"
    )
    list(Trainer(single_objective(network, loss), (torch.zeros(2),), settings))
    for name, parameter in network.named_parameters():
        factor = 0.95**3 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_the_rows_that_a_loss_sees():
    seen = []

    def loss(batch, source):
        seen.append((source.start, source.stop, source.total, batch[0].tolist()))
        assert isinstance(source, Rows)
        return {"loss": network(batch[0][:, None]).mean()}

    network = nn.Linear(1, 1)
    settings = TrainingSettings(steps=1, batch_size=6, accumulate=3)
    Trainer(single_objective(network, loss), (torch.arange(8.0),), settings).advance()
    assert [rows[:3] for rows in seen] == [(0, 2, 6), (2, 4, 6), (4, 6, 6)]
    assert [x for rows in seen for x in rows[3]] == BatchOrder(8, 6, 0).indices(0).tolist()


# ---------------------------------------------------------------- precision, memory order, compilation


@pytest.mark.filterwarnings("ignore:this CPU has no bfloat16")
def test_bf16(worker):
    trainer = worker.trainer("everything", steps=6, precision="bf16-mixed", clip=None)
    exact = worker.trainer("everything", steps=6, clip=None)
    types = set()
    trainer.objective.network.critic[0].register_forward_hook(
        lambda module, inputs, output: types.add(output.dtype)
    )
    losses = [[event.loss for event in t] for t in (trainer, exact)]
    assert types == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.objective.network.parameters())
    # 8 bits of a mantissa: three digits.
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert losses[0] != losses[1]


def test_channels_last(worker):
    layouts = set()
    last = worker.trainer("everything", steps=4)
    last.objective.network.critic[0].register_forward_hook(
        lambda m, x, y: layouts.add(
            (x[0].is_contiguous(memory_format=torch.channels_last), y.stride()[1])
        )
    )
    first = worker.trainer("everything", steps=4, channels_last=False)
    for trainer in (last, first):  # dropout fills its masks in the order of memory
        for module in trainer.objective.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    losses = [[event.loss for event in t] for t in (last, first)]
    assert layouts == {(True, 1)}
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*script_method.*deprecated:DeprecationWarning")  # torch's own
def test_compiled_networks_train_alike(worker):
    plain, compiled = (worker.trainer("denoiser", steps=3, compile=c) for c in (False, True))
    names = set(plain.objective.network.state_dict())
    assert set(compiled.objective.network.state_dict()) == names
    assert compiled.objective.network.layers._compiled_call_impl is not None
    losses = [[event.loss for event in t] for t in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_becomes_infinite_or_no_number(value):
    network = nn.Linear(1, 1)

    def loss(batch, source):
        factor = value if trainer.step == 2 else 1.0
        value_of_batch = network(batch[0]).square().mean() * factor
        return {"loss": value_of_batch, "other": torch.tensor(math.nan)}

    trainer = Trainer(
        single_objective(network, loss), (torch.ones(4, 1),), TrainingSettings(batch_size=4)
    )
    trainer.advance()
    trainer.advance()
    with pytest.raises(DivergedError, match=r"not finite at step 3\. Try a lower") as caught:
        trainer.advance()
    assert caught.value.step == 3


def test_a_check_that_comes_late_names_the_first_step():
    """As on a GPU, where reading the loss at every step would make it wait."""
    network = nn.Linear(1, 1)

    def loss(batch, source):
        return {"loss": network(batch[0]).mean() * (math.nan if trainer.step >= 4 else 1.0)}

    trainer = Trainer(
        single_objective(network, loss), (torch.ones(4, 1),), TrainingSettings(batch_size=4)
    )
    trainer._check_every = 20
    with pytest.raises(DivergedError) as caught:
        list(trainer)
    assert (trainer.step, caught.value.step) == (20, 5)


def test_batches_that_cannot_be_divided(worker):
    with pytest.raises(
        ValueError, match=r"batch_size is 16, which 1 processes × 3 .* multiple of 3"
    ):
        worker.trainer("denoiser", accumulate=3)
    with pytest.raises(ValueError, match="batch_size is 97, but there are only 96"):
        worker.trainer("denoiser", batch_size=97)


def test_data_of_different_lengths():
    with pytest.raises(ValueError, match=r"differ in length: \[4, 5\]"):
        Trainer(
            single_objective(nn.Linear(1, 1), lambda b, s: {}),
            (torch.ones(4, 1), torch.ones(5)),
            TrainingSettings(batch_size=2),
        )


def test_a_fabric_of_another_precision(worker):
    with pytest.raises(
        ValueError, match=r"ask for bf16-mixed, but the fabric has another.*precision='bf16-mixed'"
    ):
        worker.trainer("denoiser", Fabric(accelerator="cpu", devices=1), precision="bf16-mixed")


def test_the_network_to_use_is_the_average(worker):
    trainer = worker.trainer("denoiser")
    assert isinstance(trainer.ema, EMA)
    assert trainer.network is trainer.ema.network
    plain = worker.trainer("denoiser", ema=None)
    assert plain.network is plain.objective.network


def test_means_of_values(worker):
    trainer = worker.trainer("denoiser")
    assert trainer.mean({}) == {}
    assert trainer.mean({"a": torch.tensor(2.0), "b": torch.tensor(3)}) == {"a": 2.0, "b": 3.0}


def test_it_learns():
    """A line: y = 2x − 1 with noise, to the least squares solution."""
    with initialisation(0):
        network = nn.Linear(1, 1)
    x = normal((200, 1), derive(0, "x"))
    y = 2 * x - 1 + 0.1 * normal((200, 1), derive(0, "y"))
    losses = train(
        network,
        lambda batch, source: {"loss": (network(batch[0]) - batch[1]).square().mean()},
        (x, y),
        TrainingSettings(steps=400, batch_size=200, learning_rate=0.05),
    )
    design = torch.cat([x, torch.ones_like(x)], dim=1)
    slope, offset = torch.linalg.lstsq(design, y).solution.flatten().tolist()
    assert network.weight.item() == pytest.approx(slope, abs=1e-3)
    assert network.bias.item() == pytest.approx(offset, abs=1e-3)
    assert losses[-1] < 0.02 < losses[0]


def test_a_dataset_is_not_changed():
    digits = load("digits")[:20]
    before = digits.images.clone()
    network = nn.Linear(784, 1)
    objective = single_objective(
        network, lambda b, s: {"loss": network(b.images.flatten(1)).square().mean()}
    )
    list(Trainer(objective, digits, TrainingSettings(steps=2, batch_size=5, channels_last=True)))
    assert isinstance(digits, ImageDataset)
    assert torch.equal(digits.images, before)
