"""The Inception network whose features canonical FIDs are distances of: the TensorFlow graph of 2015-12-05.

Szegedy et al., "Rethinking the Inception Architecture" (2016), as Heusel et al. (2017) used it. It is not the network
that model zoos call Inception-v3: average pools leave the padding out of their mean, the last block pools by maximum,
there are 1,008 outputs and no auxiliary classifier, and images are resized as TensorFlow 1 did. Layers have the names
under which PyTorch versions of these weights are published ("pt_inception-2015-12-05"), so that such a file loads
as it is. The weights are not part of this package, and were not at hand when it was written: shapes, names and layers
are tested, the values of canonical features are not.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 299
FEATURES, OUTPUTS = 2048, 1008
WANTED = (
    "Wanted is the file pt_inception-2015-12-05-6726825d.pth (91 MB, which the library pytorch-fid fetches), "
    "weights-inception-2015-12-05-6726825d.pth (the same network, of torch-fidelity), or one of them as .safetensors."
)


class Layer(NamedTuple):
    """A convolution: its name in the published weights, channels out, kernel (rows, columns) and stride."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# Layers one after the other; a tuple in the last place forks into layers side by side.
Branch = tuple[Layer | tuple[Layer, ...], ...]


class Convolution(nn.Module):
    """A convolution without bias, normalisation by stored statistics, and a rectifier.

    Args:
        channels: of the input.
        layer: what it does; a kernel keeps the size at stride 1, and takes no padding otherwise.
        padded: False leaves the borders out, as the first layers do.
    """

    def __init__(self, channels: int, layer: Layer, padded: bool = True) -> None:
        super().__init__()
        rows, columns = layer.kernel
        padding = (rows // 2, columns // 2) if padded and layer.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(
            channels, layer.channels, layer.kernel, layer.stride, padding, bias=False
        )
        self.bn = nn.BatchNorm2d(layer.channels, eps=0.001)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Returns the rectified, normalised convolution."""
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    # TensorFlow's mean is over what lies inside the image.
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _shrink(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


POOLS = {"average": _average, "maximum": _maximum, "shrink": _shrink}


class Mixed(nn.Module):
    """Branches side by side, their channels concatenated; the last one pools.

    Args:
        channels: of the input.
        branches: convolutions, branch by branch.
        pool: how the last branch pools: "average", "maximum", or "shrink", which halves the size.
        projected: channels of the convolution after the pool; 0 for none.
    """

    def __init__(
        self, channels: int, branches: tuple[Branch, ...], pool: str, projected: int = 0
    ) -> None:
        super().__init__()
        self.branches, self.pool = branches, POOLS[pool]
        self.projected = bool(projected)
        self.channels = 0 if projected else channels
        pooled: tuple[Branch, ...] = ((Layer("branch_pool", projected),),) if projected else ()
        for branch in (*branches, *pooled):
            self.channels += self._build(channels, branch)

    def _build(self, channels: int, branch: Branch) -> int:
        """Adds the layers of a branch and returns how many channels come out."""
        for step in branch:
            layers = (step,) if isinstance(step, Layer) else step
            for layer in layers:
                self.add_module(layer.name, Convolution(channels, layer))
            channels = sum(layer.channels for layer in layers)
        return channels

    def _run(self, x: Tensor, branch: Branch) -> Tensor:
        for step in branch:
            layers = (step,) if isinstance(step, Layer) else step
            x = torch.cat([self.get_submodule(layer.name)(x) for layer in layers], dim=1)
        return x

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Returns the branches' channels, in the order of their names in the paper's figures."""
        pooled = self.pool(x)
        if self.projected:
            pooled = self.get_submodule("branch_pool")(pooled)
        return torch.cat([*(self._run(x, branch) for branch in self.branches), pooled], dim=1)


SQUARE3, SQUARE5, ROW3, COLUMN3, ROW7, COLUMN7 = (3, 3), (5, 5), (1, 3), (3, 1), (1, 7), (7, 1)


def _mixed_35(channels: int, projected: int) -> Mixed:
    """35×35 positions: 1×1, 5×5 and two 3×3 (figure 5)."""
    branches = (
        (Layer("branch1x1", 64),),
        (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, SQUARE5)),
        (
            Layer("branch3x3dbl_1", 64),
            Layer("branch3x3dbl_2", 96, SQUARE3),
            Layer("branch3x3dbl_3", 96, SQUARE3),
        ),
    )
    return Mixed(channels, branches, "average", projected)


def _to_17(channels: int) -> Mixed:
    branches = (
        (Layer("branch3x3", 384, SQUARE3, 2),),
        (
            Layer("branch3x3dbl_1", 64),
            Layer("branch3x3dbl_2", 96, SQUARE3),
            Layer("branch3x3dbl_3", 96, SQUARE3, 2),
        ),
    )
    return Mixed(channels, branches, "shrink")


def _mixed_17(channels: int, c: int) -> Mixed:
    """17×17 positions: 7×7 kernels as rows and columns (figure 6)."""
    branches = (
        (Layer("branch1x1", 192),),
        (
            Layer("branch7x7_1", c),
            Layer("branch7x7_2", c, ROW7),
            Layer("branch7x7_3", 192, COLUMN7),
        ),
        (
            Layer("branch7x7dbl_1", c),
            Layer("branch7x7dbl_2", c, COLUMN7),
            Layer("branch7x7dbl_3", c, ROW7),
            Layer("branch7x7dbl_4", c, COLUMN7),
            Layer("branch7x7dbl_5", 192, ROW7),
        ),
    )
    return Mixed(channels, branches, "average", 192)


def _to_8(channels: int) -> Mixed:
    branches = (
        (Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, SQUARE3, 2)),
        (
            Layer("branch7x7x3_1", 192),
            Layer("branch7x7x3_2", 192, ROW7),
            Layer("branch7x7x3_3", 192, COLUMN7),
            Layer("branch7x7x3_4", 192, SQUARE3, 2),
        ),
    )
    return Mixed(channels, branches, "shrink")


def _mixed_8(channels: int, pool: str) -> Mixed:
    """8×8 positions: 3×3 kernels that fork into a row and a column (figure 7)."""
    branches = (
        (Layer("branch1x1", 320),),
        (
            Layer("branch3x3_1", 384),
            (Layer("branch3x3_2a", 384, ROW3), Layer("branch3x3_2b", 384, COLUMN3)),
        ),
        (
            Layer("branch3x3dbl_1", 448),
            Layer("branch3x3dbl_2", 384, SQUARE3),
            (Layer("branch3x3dbl_3a", 384, ROW3), Layer("branch3x3dbl_3b", 384, COLUMN3)),
        ),
    )
    return Mixed(channels, branches, pool, 192)


def resize(images: Float[Tensor, "n c h w"], size: int = SIZE) -> Float[Tensor, "n c size size"]:
    """Resizes as TensorFlow 1 did: output pixel i is read at i · old / new, between the two pixels around it.

    Corners are not aligned, pixel centres are not moved by half, and nothing is smoothed where the image shrinks.
    """
    for dim in (2, 3):
        old = images.shape[dim]
        # In float32, as the graph computes it.
        place = torch.arange(size, dtype=torch.float32, device=images.device) * torch.tensor(
            old / size, dtype=torch.float32
        )
        low = place.long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        shape = [1] * images.ndim
        shape[dim] = size
        weight = (place - low).view(shape).to(images.dtype)
        before, after = images.index_select(dim, low), images.index_select(dim, high)
        images = before + (after - before) * weight
    return images


class InceptionV3(nn.Module):
    """The network, from bytes to 2,048 features and 1,008 logits; in evaluation mode from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, Layer("1a", 32, SQUARE3, 2))
        self.Conv2d_2a_3x3 = Convolution(32, Layer("2a", 32, SQUARE3), padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, Layer("2b", 64, SQUARE3))
        self.Conv2d_3b_1x1 = Convolution(64, Layer("3b", 80))
        self.Conv2d_4a_3x3 = Convolution(80, Layer("4a", 192, SQUARE3), padded=False)
        self.Mixed_5b = _mixed_35(192, 32)
        self.Mixed_5c = _mixed_35(256, 64)
        self.Mixed_5d = _mixed_35(288, 64)
        self.Mixed_6a = _to_17(288)
        self.Mixed_6b = _mixed_17(768, 128)
        self.Mixed_6c = _mixed_17(768, 160)
        self.Mixed_6d = _mixed_17(768, 160)
        self.Mixed_6e = _mixed_17(768, 192)
        self.Mixed_7a = _to_8(768)
        self.Mixed_7b = _mixed_8(1280, "average")
        self.Mixed_7c = _mixed_8(2048, "maximum")
        self.fc = nn.Linear(FEATURES, OUTPUTS)
        self.eval()

    def features(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        """Returns the average over the last positions ("pool3").

        Args:
            images: RGB bytes of any size; they are resized to 299×299 and mapped by (v − 128) / 128.
        """
        x = (resize(images.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # 147×147
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_shrink(x)))  # 71×71
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_shrink(x))))  # 35×35
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # 17×17
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # 8×8
        return x.mean(dim=(2, 3))

    def unbiased_logits(self, features: Float[Tensor, "n 2048"]) -> Float[Tensor, "n 1008"]:
        """Returns the logits without the last layer's bias, as the Inception Score's original code took them."""
        return F.linear(features, self.fc.weight)

    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1008"]:
        """Returns the logits."""
        return self.fc(self.features(images))


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> InceptionV3:
    """Returns the network with weights from a local file; nothing is fetched.

    Args:
        path: a .safetensors file, or a .pth of tensors alone: other objects in it are never built.
        device: where the network goes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no weights of this network, or weights that are not finite; the message says which
            file is wanted.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of Inception weights at {path}. {WANTED}")
    weights = _fitting(_tensors(path), path)
    with torch.device("meta"):
        network = InceptionV3()
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval().to(device)


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """Reads names and tensors from either format, and never anything else."""
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can bring up nearly any of them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path} cannot be read as weights ({reason}). {WANTED}") from None
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{path} holds something else than names and tensors. {WANTED}")
    return found


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """Returns the network's names and shapes, in its order."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in InceptionV3().state_dict().items()}


def _fitting(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns the weights in float32 if they are those of this network, name by name and shape by shape."""
    wanted = _shapes()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - counters - set(found))
    surplus = sorted(set(found) - set(wanted))
    other = [
        f"{name} {tuple(found[name].shape)} instead of {wanted[name]}"
        for name in wanted
        if name in found and name not in counters and tuple(found[name].shape) != wanted[name]
    ]
    for kind, names in (("lacks", missing), ("has besides", surplus), ("has", other)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{path} holds another network: it {kind} {', '.join(names[:3])}{more}. {WANTED}"
            )
    for name in set(wanted) - counters:
        if not found[name].is_floating_point() or not torch.isfinite(found[name]).all():
            raise ValueError(
                f"{path} is damaged: {name} holds values that are no finite numbers. {WANTED}"
            )
    return {
        name: torch.zeros((), dtype=torch.int64) if name in counters else found[name].float()
        for name in wanted
    }
