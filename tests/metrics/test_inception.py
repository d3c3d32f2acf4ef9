"""Inception: names, shapes and layers; values on made-up weights, as another library computes them; files of weights.

The library is torch-fidelity 0.4, which has the canonical network: the numbers below were printed by its
FeatureExtractorInceptionV3 with the same made-up weights and images. The canonical weights were not at hand.
"""

import hashlib
import io
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from companion.metrics.inception import (
    Convolution,
    InceptionV3,
    Layer,
    Mixed,
    load_inception,
    resize,
)

mutated = runpy.run_path(str(Path(__file__).with_name("damage.py")))["mutated"]

# SHA-256 of "name shape" lines of torch-fidelity's network, sorted.
NAMES_AND_SHAPES = "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"


def noise(shape, start: int) -> torch.Tensor:
    """Numbers in [−1, 1) that look random and are the same on every machine."""
    count = int(np.prod(shape, dtype=np.int64))
    steps = np.sin(np.arange(count, dtype=np.float64) + 1000 * start) * 43758.5453
    return torch.from_numpy(2 * (steps - np.floor(steps)) - 1).reshape(shape)


def made_up_weights() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {name: tuple(v.shape) for name, v in InceptionV3().state_dict().items()}
    weights = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        x = noise(shape, i)
        if name.endswith("tracked"):
            x = torch.zeros((), dtype=torch.int64)
        elif name.endswith(("var", "bn.weight")):
            x = 1 + 0.3 * x
        elif len(shape) == 4:
            x = x * (6 / np.prod(shape[1:])) ** 0.5
        elif len(shape) == 2:
            x = x * 0.1
        else:
            x = 0.1 * x
        weights[name] = x if x.dtype == torch.int64 else x.float()
    return weights


def made_up_images(n: int, height: int, width: int) -> torch.Tensor:
    return (127.5 + 127.5 * noise((n, 3, height, width), 7)).round().to(torch.uint8)


@pytest.fixture(scope="module")
def weights():
    return made_up_weights()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return load_inception(file)


def test_names_shapes_and_size():
    with torch.device("meta"):
        network = InceptionV3()
    lines = [f"{name} {tuple(v.shape)}" for name, v in sorted(network.state_dict().items())]
    assert len(lines) == 566
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == NAMES_AND_SHAPES
    assert sum(p.numel() for p in network.parameters()) == 23_850_960


# Size, the first features of two images, their mean, the first logits without bias, and with.
BY_TORCH_FIDELITY = [
    (
        (32, 32),
        [0.0, 0.06424, 0.35526, 0.71384, 0.0, 0.05707, 0.35477, 0.73311],
        0.385243,
        [2.23963, 2.08991, 0.71841, -0.34253],
        [2.21616, 2.03433, 0.63201, -0.37266],
    ),
    (
        (400, 310),
        [0.0, 0.03509, 0.36005, 0.82702, 6e-05, 0.03323, 0.36263, 0.83338],
        0.430598,
        [2.3069, 2.40179, 0.98333, -0.59239],
        [2.28342, 2.3462, 0.89693, -0.62252],
    ),
]


@pytest.mark.parametrize(("size", "features", "mean", "unbiased", "logits"), BY_TORCH_FIDELITY)
def test_equals_torch_fidelity(network, size, features, mean, unbiased, logits):
    x = made_up_images(2, *size)
    found = network.features(x)
    assert found.shape == (2, 2048)
    close = {"rel": 1e-3, "abs": 1e-5}
    assert found[:, :4].flatten().tolist() == pytest.approx(features, **close)
    assert float(found.mean()) == pytest.approx(mean, **close)
    assert network.unbiased_logits(found)[0, :4].tolist() == pytest.approx(unbiased, **close)
    whole = network(x)
    assert whole.shape == (2, 1008)
    assert whole[0, :4].tolist() == pytest.approx(logits, **close)


def test_images_do_not_see_their_neighbours(network):
    x = made_up_images(2, 40, 28)
    torch.testing.assert_close(
        network.features(x)[1:2], network.features(x[1:2]), rtol=1e-4, atol=1e-5
    )
    assert not network.training


# ---------------------------------------------------------------- layers against their formulas


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(0, 99))
def test_resizing_is_that_of_tensorflow_1(height, width, size, seed):
    """Output (i, j) is read at (i · h / size, j · w / size), by hand."""
    x = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(seed))
    expected = torch.empty(1, 2, size, size)
    for i in range(size):
        for j in range(size):
            u, v = (
                np.float32(i) * np.float32(height / size),
                np.float32(j) * np.float32(width / size),
            )
            a, b = min(int(u), height - 1), min(int(v), width - 1)
            c, d = min(a + 1, height - 1), min(b + 1, width - 1)
            p, q = float(u - a), float(v - b)
            top = x[..., a, b] * (1 - q) + x[..., a, d] * q
            bottom = x[..., c, b] * (1 - q) + x[..., c, d] * q
            expected[..., i, j] = top * (1 - p) + bottom * p
    torch.testing.assert_close(resize(x, size), expected, rtol=1e-5, atol=1e-5)


def test_the_right_size_is_left_alone(generator):
    x = torch.rand(2, 3, 299, 299, generator=generator)
    assert torch.equal(resize(x), x)


@pytest.mark.parametrize(("kernel", "stride"), [((1, 1), 1), ((3, 3), 2), ((1, 7), 1), ((5, 5), 1)])
def test_a_convolution_is_normalised_and_rectified(generator, kernel, stride):
    layer = Convolution(3, Layer("any", 4, kernel, stride)).eval()
    norm = layer.bn
    for values, low, high in (
        (norm.running_mean, -1, 1),
        (norm.running_var, 0.5, 2),
        (norm.weight.data, -2, 2),
        (norm.bias.data, -1, 1),
    ):
        values.uniform_(low, high, generator=generator)
    x = torch.randn(2, 3, 9, 9, generator=generator)
    padding = (0, 0) if stride == 2 else (kernel[0] // 2, kernel[1] // 2)
    y = F.conv2d(x, layer.conv.weight, None, stride, padding)
    mean, var, gain, bias = (
        v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    expected = ((y - mean) / (var + 0.001).sqrt() * gain + bias).clamp(min=0)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["average", "maximum", "shrink"])
def test_pools_by_hand(generator, pool):
    x = torch.randn(1, 1, 5, 5, generator=generator)
    expected = []
    for i in (1, 3) if pool == "shrink" else range(5):
        for j in (1, 3) if pool == "shrink" else range(5):
            window = x[0, 0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            expected.append(float(window.mean() if pool == "average" else window.max()))
    found = Mixed(1, (), pool)(x).flatten()
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_branches_stand_side_by_side_and_forks_end_them(generator):
    branches = ((Layer("a", 2),), (Layer("b", 3), (Layer("c", 1, (1, 3)), Layer("d", 2, (3, 1)))))
    block = Mixed(4, branches, "average", 5).eval()
    assert block.channels == 2 + 1 + 2 + 5
    x = torch.randn(2, 4, 6, 6, generator=generator)
    b = block.b(x)
    pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    expected = torch.cat([block.a(x), block.c(b), block.d(b), block.branch_pool(pooled)], dim=1)
    assert torch.equal(block(x), expected)


# ---------------------------------------------------------------- files


def test_both_formats_and_half_precision_load(weights, network, tmp_path):
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in weights.items()},
        tmp_path / "half.safetensors",
    )
    plain = {k: v for k, v in weights.items() if not k.endswith("tracked")}
    torch.save(plain, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    wanted = network.state_dict()
    for path, close in ((tmp_path / "half.safetensors", 1e-3), (tmp_path / "old.pt", 0)):
        loaded = load_inception(path)
        for name, value in loaded.state_dict().items():
            assert value.dtype == wanted[name].dtype
            assert float((value - wanted[name]).abs().max()) <= close, name
        assert not any(p.requires_grad for p in loaded.parameters())


class Planted:
    """A pickle that would run something."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def in_pickle(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as weights"),
        (b"no weights at all", "cannot be read as weights"),
        (pickle.dumps(Planted()), "cannot be read as weights"),
        (in_pickle(Planted()), "cannot be read as weights"),
        (in_pickle({"state_dict": Planted()}), "cannot be read as weights"),
        (in_pickle([torch.zeros(2)]), "something else than names and tensors"),
        (in_pickle({"state_dict": {"a": torch.zeros(2)}}), "something else than names and tensors"),
        (
            in_pickle({"a": torch.zeros(2)}),
            r"another network: it lacks Conv2d_1a_3x3\.bn\.bias.* and \d+ more",
        ),
    ],
)
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_files_that_hold_no_weights(tmp_path, content, message, name):
    path = tmp_path / name
    path.write_bytes(content)
    if name.endswith("safetensors"):
        message = "cannot be read as weights"
    with pytest.raises(
        ValueError, match=rf"{name} .*{message}.*Wanted is the file pt_inception-2015"
    ):
        load_inception(path)


@pytest.mark.parametrize("name", ["small.pth", "small.safetensors"])
def test_500_damaged_files_give_the_documented_error(tmp_path, name):
    path = tmp_path / name
    some = {"fc.bias": torch.zeros(8), "fc.weight": torch.zeros(2, 2)}
    (save_file if name.endswith("safetensors") else torch.save)(some, path)
    content = path.read_bytes()
    for seed in range(500):
        path.write_bytes(mutated(content, seed))
        with pytest.raises(ValueError, match="Wanted is the file pt_inception"):
            load_inception(path)


def test_other_networks_and_damaged_ones(weights, tmp_path):
    """The network of model zoos has 1,000 outputs and an auxiliary classifier."""
    zoo = weights | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    broken = weights["Mixed_7a.branch3x3_1.bn.bias"].clone()
    broken[3] = torch.nan
    for change, message in (
        (zoo, r"it has fc\.weight \(1000, 2048\) instead of \(1008, 2048\)"),
        (zoo | {"AuxLogits.fc.weight": torch.zeros(2)}, r"it has besides AuxLogits\.fc\.weight"),
        (weights | {"Mixed_7a.branch3x3_1.bn.bias": broken}, r"is damaged: Mixed_7a\.branch3x3_1"),
        (weights | {"fc.bias": torch.zeros(1008, dtype=torch.int32)}, "is damaged: fc.bias"),
    ):
        save_file(change, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=message):
            load_inception(tmp_path / "other.safetensors")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth.*Wanted is the file pt_inc"):
        load_inception(tmp_path / "none.pth")
