"""Autoencoders: an image through a bottleneck and back, with the least squared error.

After Rumelhart, Hinton and Williams (1986, "Learning internal representations by error propagation") and Hinton and
Salakhutdinov (2006, "Reducing the dimensionality of data with neural networks"). The deep ones here are trained from
scratch by AdamW, without the layer-by-layer pretraining that 2006 needed, and have smooth activations.

1. `principal_components`, `LinearAutoencoder`: the linear case, whose optimum is known in closed form (Baldi and
   Hornik 1989, "Neural networks and principal component analysis").
2. `Autoencoder`: multilayer perceptron or convolutional, any bottleneck.
3. `fit_gaussian`, `fit_mixture`, `sample`: a density fitted to the codes afterwards turns the decoder into a
   generator (Ghosh et al. 2020, "From variational to deterministic autoencoders", call it ex-post density estimation).
"""

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn
from torch.nn import functional

from companion import checks
from companion.nn.convolutional import ConvDecoder, ConvEncoder
from companion.nn.layers import he_initialise, perceptron, scales
from companion.randomness import Source, integers, normal, source_of, uniform

# --- 1. The linear case ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrincipalComponents:
    """The directions of largest variance of a set of points.

    Attributes:
        mean: of the points.
        axes: orthonormal rows, in order of falling variance; signs are arbitrary.
        variances: of the points along each axis, divided by n − 1.
    """

    mean: Float64[Tensor, " d"]
    axes: Float64[Tensor, "k d"]
    variances: Float64[Tensor, " k"]


def principal_components(x: Float[Tensor, "n *shape"], k: int) -> PrincipalComponents:
    """Returns the first k principal components of points, in double precision.

    Args:
        x: the points; images are flattened.
        k: how many, at most the number of points less one and the number of dimensions.

    Raises:
        ValueError: if there are not so many components.
    """
    flat = x.flatten(1).double()
    n, d = flat.shape
    if not 1 <= k <= min(n - 1, d):
        raise ValueError(
            f"{n} points in {d} dimensions have at most {min(n - 1, d)} principal components, asked for {k}."
        )
    mean = flat.mean(0)
    centred = flat - mean
    if n < d:
        _, s, vt = torch.linalg.svd(centred, full_matrices=False)
        return PrincipalComponents(mean, vt[:k], s[:k] ** 2 / (n - 1))
    # With many points the d×d covariance is far cheaper than a decomposition of all of them.
    values, vectors = torch.linalg.eigh(centred.T @ centred / (n - 1))
    return PrincipalComponents(
        mean, vectors.flip(1)[:, :k].T.contiguous(), values.flip(0)[:k].clamp(min=0)
    )


class Bottleneck(nn.Module, ABC):
    """What every autoencoder here does with its encoder and decoder: reconstruct, with the least squared error.

    Args:
        latent_dim: numbers per code.
        channels: of the images.
        size: their side in pixels.

    Attributes:
        latent_dim: as given.
        image_shape: (channels, size, size).

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, latent_dim: int, channels: int, size: int) -> None:
        super().__init__()
        checks.whole(1, latent_dim=latent_dim, channels=channels, size=size)
        self.latent_dim, self.image_shape = latent_dim, (channels, size, size)

    @abstractmethod
    def _down(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent_dim"]: ...

    @abstractmethod
    def _up(self, z: Float[Tensor, "n latent_dim"]) -> Float[Tensor, "n c h w"]: ...

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent_dim"]:
        """Returns the codes of images.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        checks.images(x, *self.image_shape[:2], "autoencoder")
        return self._down(x)

    def decode(self, z: Float[Tensor, "n latent_dim"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of codes.

        Raises:
            ValueError: if the codes have another length.
        """
        checks.codes(z, self.latent_dim, "autoencoder")
        return self._up(z)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns the reconstructions."""
        return self.decode(self.encode(x))

    def loss(
        self, x: Float[Tensor, "n c h w"], source: Source | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Returns the mean squared error per pixel, in units of the range [−1, 1]; nothing is drawn."""
        return {"loss": functional.mse_loss(self(x).float(), x.float())}


class LinearAutoencoder(Bottleneck):
    """One linear layer down, one linear layer up: z = W x + b, x̂ = V z + c, which is not confined to [−1, 1].

    Its least squared error is reached exactly when V W is the projection onto the span of the first `latent_dim`
    principal components; W and V themselves are determined only up to an invertible map of the code.

    Args:
        latent_dim: numbers per code.
        channels: of the images.
        size: their side in pixels.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, latent_dim: int = 32, channels: int = 1, size: int = 28) -> None:
        super().__init__(latent_dim, channels, size)
        d = channels * size**2
        self.down, self.up = nn.Linear(d, latent_dim), nn.Linear(latent_dim, d)

    def _down(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent_dim"]:
        return self.down(rearrange(x, "n c h w -> n (c h w)"))

    def _up(self, z: Float[Tensor, "n latent_dim"]) -> Float[Tensor, "n c h w"]:
        return self.up(z).unflatten(1, self.image_shape)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n c h w"]) -> "LinearAutoencoder":
        """Puts the weights at the optimum for these images: the code is the coordinates along principal axes.

        Raises:
            ValueError: if the images have another shape, or fewer principal components than the code has numbers.
        """
        checks.images(x, *self.image_shape[:2], "autoencoder")
        found = principal_components(x, self.latent_dim)
        self.down.weight.copy_(found.axes)
        self.down.bias.copy_(-found.axes @ found.mean)
        self.up.weight.copy_(found.axes.T)
        self.up.bias.copy_(found.mean)
        return self


# --- 2. Deep autoencoders -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The settings of an `Autoencoder`.

    Attributes:
        latent_dim: numbers per code: the bottleneck.
        channels: of the images, 1 or 3.
        size: their side in pixels; the convolutional one takes 28, 32, 64 and others that can be halved to at most 8.
        width: scales all layers. At 16 and for grey 28×28 images, the convolutional one has about 0.69 M parameters
            and the perceptron, with layers of 256 and 128 units, about 0.48 M.
        architecture: "convolutional" or "mlp".

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    latent_dim: int = 32
    channels: int = 1
    size: int = 28
    width: int = 16
    architecture: Literal["convolutional", "mlp"] = "convolutional"

    def __post_init__(self) -> None:
        checks.whole(1, latent_dim=self.latent_dim, channels=self.channels, size=self.size)
        checks.whole(1, width=self.width)
        checks.one_of(["convolutional", "mlp"], architecture=self.architecture)
        if self.architecture == "convolutional":
            scales(self.size)


class Autoencoder(Bottleneck):
    """A deep autoencoder with squared error; a tanh at the end keeps its images in [−1, 1].

    The convolutional one passes through 6·width numbers on each side of the code, the perceptron through 8·width: a
    code of more numbers than that is no wider a bottleneck.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "autoencoder".
    """

    Config = AutoencoderConfig

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        c = config or AutoencoderConfig()
        super().__init__(c.latent_dim, c.channels, c.size)
        self.config = c
        if c.architecture == "convolutional":
            self.encoder: nn.Module = ConvEncoder(c.channels, c.size, c.width, c.latent_dim)
            decoder: nn.Module = ConvDecoder(c.latent_dim, c.channels, c.size, c.width)
        else:
            pixels, wide, narrow = math.prod(self.image_shape), 16 * c.width, 8 * c.width
            down = perceptron(pixels, wide, narrow, c.latent_dim, he=False)
            up = perceptron(c.latent_dim, narrow, wide, pixels, he=False)
            self.encoder = nn.Sequential(nn.Flatten(), *down)
            decoder = nn.Sequential(*up, nn.Unflatten(1, self.image_shape))
            he_initialise(self.encoder)
            he_initialise(decoder)
        # The tanh keeps pixels in range; most are black or white, where it is flat and easily exact.
        self.decoder = nn.Sequential(decoder, nn.Tanh())

    def _down(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent_dim"]:
        return self.encoder(x)

    def _up(self, z: Float[Tensor, "n latent_dim"]) -> Float[Tensor, "n c h w"]:
        return self.decoder(z)

    def encode_windows(
        self, x: Float[Tensor, "n c H W"]
    ) -> Float[Tensor, "n latent_dim rows columns"]:
        """Returns the codes of all windows of a larger canvas; see `ConvEncoder.dense`.

        Raises:
            TypeError: if the network is not convolutional.
            ValueError: if the canvas is too small or does not fit the stride.
        """
        if not isinstance(self.encoder, ConvEncoder):
            raise TypeError(
                "only the convolutional autoencoder slides over a larger canvas; cut windows out and "
                "encode each."
            )
        return self.encoder.dense(x)


# --- 3. A density of the codes, afterwards --------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentMixture:
    """A mixture of Gaussians with full covariances: p(z) = Σ_k π_k N(z; μ_k, Σ_k).

    Attributes:
        weights: π, positive, with sum one.
        means: μ.
        covariances: Σ, positive definite.
    """

    weights: Float64[Tensor, " k"]
    means: Float64[Tensor, "k d"]
    covariances: Float64[Tensor, "k d d"]

    def to(self, device: str | torch.device) -> "LatentMixture":
        """Returns the same mixture on another device."""
        return LatentMixture(
            self.weights.to(device), self.means.to(device), self.covariances.to(device)
        )

    def _log_joint(self, z: Float[Tensor, "n d"]) -> Float64[Tensor, "n k"]:
        """log π_k + log N(z; μ_k, Σ_k) of every point and part."""
        roots = torch.linalg.cholesky(self.covariances)
        off = rearrange(z.double(), "n d -> d n") - rearrange(self.means, "k d -> k d 1")
        white = torch.linalg.solve_triangular(roots, off, upper=False)
        log_root = roots.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.weights.log() - log_root - 0.5 * z.shape[1] * math.log(2 * math.pi)
        return (constant[:, None] - 0.5 * white.square().sum(1)).T

    def log_prob(self, z: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """Returns log p(z) in nats."""
        return self._log_joint(z).logsumexp(1)

    def responsibilities(self, z: Float[Tensor, "n d"]) -> Float64[Tensor, "n k"]:
        """Returns the probability of each part given the point."""
        return self._log_joint(z).softmax(1)

    def sample(self, n: int, source: Source) -> Float32[Tensor, "n d"]:
        """Draws codes."""
        k, d = self.means.shape
        edges = self.weights.cumsum(0).to(torch.float32)
        part = torch.searchsorted(edges, uniform((n,), source, self.means.device)).clamp(max=k - 1)
        noise = normal((n, d), source, self.means.device).double()
        roots = torch.linalg.cholesky(self.covariances)
        return (self.means[part] + torch.einsum("nij,nj->ni", roots[part], noise)).float()


def fit_gaussian(codes: Float[Tensor, "n d"], floor: float | int = 1e-6) -> LatentMixture:
    """Returns one Gaussian with the codes' mean and covariance (divided by n, the maximum of the likelihood).

    Args:
        codes: at least two different ones.
        floor: share of the mean variance that is added to each variance, for codes that do not fill the space.

    Raises:
        ValueError: if the codes are not finite, or fewer than two of them differ.
    """
    return fit_mixture(codes, 1, floor=floor)


def fit_mixture(
    codes: Float[Tensor, "n d"],
    parts: int,
    source: torch.Generator | None = None,
    *,
    iterations: int = 100,
    tolerance: float | int = 1e-3,
    floor: float | int = 1e-6,
) -> LatentMixture:
    """Fits a mixture of Gaussians to codes by expectation–maximisation, from a k-means start.

    scikit-learn's `GaussianMixture` does the work, on the CPU and in double precision. Its k-means has a k-means++
    start.

    Args:
        codes: more than the number of parts.
        parts: K.
        source: draws the start; not needed for one part.
        iterations: at most so many.
        tolerance: stop when the mean log-likelihood gains less than this, in nats per code.
        floor: share of the mean variance of the codes that is added to each part's variances.

    Returns:
        The mixture, on the codes' device.

    Raises:
        ValueError: if the codes are too few, too few of them differ or one is not finite, if a part loses its spread,
            or if a start must be drawn and there is no generator.
    """
    checks.whole(1, parts=parts, iterations=iterations)
    checks.number(0, tolerance=tolerance, floor=floor)
    z = codes.detach().double().cpu()
    if len(z) <= parts:
        raise ValueError(
            f"a mixture of {parts} parts needs more codes than parts, got {len(z)}: give more codes."
        )
    if not torch.isfinite(z).all():
        raise ValueError(
            "the codes hold NaN or infinite values: look at the network that made them."
        )
    if len(torch.unique(z, dim=0)) < max(parts, 2):
        raise ValueError(
            f"the codes hold fewer than {max(parts, 2)} different points: the encoder may be dead, or give fewer parts."
        )
    if parts > 1 and source is None:
        raise ValueError("the start of a mixture is drawn: give a torch.Generator.")
    start = 0 if source is None else int(integers(2**32, (1,), source))
    # scikit-learn takes about a second to import, and few who import an autoencoder need it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    estimator = GaussianMixture(
        parts,
        covariance_type="full",
        tol=tolerance,
        reg_covar=floor * float(z.var(0, correction=0).mean()),
        max_iter=iterations,
        random_state=start,
    )
    with warnings.catch_warnings():
        # Whoever limits the iterations knows that it may stop early.
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            estimator.fit(z.numpy())
        except ValueError as error:
            raise ValueError(
                f"a mixture of {parts} parts does not fit {len(z)} codes with floor {floor:g}: a part has no spread in "
                "some direction. Give a larger floor, or fewer parts."
            ) from error
    found = (estimator.weights_, estimator.means_, estimator.covariances_)
    return LatentMixture(*(torch.from_numpy(part).double() for part in found)).to(codes.device)


@runtime_checkable
class Decoder(Protocol):
    """What leads from codes to images: an autoencoder, for one."""

    def decode(self, z: Float[Tensor, "n d"], /) -> Float[Tensor, "n c h w"]: ...


@torch.no_grad()
def sample(
    model: Decoder,
    density: LatentMixture,
    n: int,
    source: Source | None = None,
    *,
    seed: int | None = None,
) -> Float[Tensor, "n c h w"]:
    """Draws images: codes from a density, decoded, clamped to [−1, 1].

    Args:
        model: with a method `decode` from codes to images.
        density: of the codes.
        n: how many.
        source: of the codes.
        seed: in place of a source; image i is then a function of the seed and of i alone.

    Raises:
        ValueError: unless exactly one of source and seed is given.
    """
    return model.decode(density.sample(n, source_of(n, source, seed))).clamp(-1, 1)
