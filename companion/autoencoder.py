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
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn
from torch.nn import functional

from companion.errors import unknown_name
from companion.nn.convolutional import ConvDecoder, ConvEncoder, he_initialise
from companion.randomness import Source, integers, normal, uniform

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

    Attributes:
        latent: numbers a code.
        channels: of the images.
        size: their side in pixels.
    """

    def __init__(self, latent: int, channels: int, size: int) -> None:
        super().__init__()
        if min(latent, channels, size) < 1:
            raise ValueError(
                f"latent, channels and size must be at least 1, got {latent}, {channels}, {size}."
            )
        self.latent, self.channels, self.size = latent, channels, size

    @abstractmethod
    def _down(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent"]: ...

    @abstractmethod
    def _up(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c h w"]: ...

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent"]:
        """Returns the codes of images.

        Raises:
            ValueError: if the images have another shape than the network was built for.
        """
        self._check_images(x)
        return self._down(x)

    def _check_images(self, x: Tensor) -> None:
        shape = (self.channels, self.size, self.size)
        if tuple(x.shape[1:]) != shape:
            raise ValueError(
                f"this autoencoder takes images of shape {shape}, got {tuple(x.shape[1:])}."
            )

    def decode(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of codes.

        Raises:
            ValueError: if the codes have another length.
        """
        if z.shape[1] != self.latent:
            raise ValueError(
                f"this autoencoder has codes of {self.latent} numbers, got {z.shape[1]}."
            )
        return self._up(z)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns the reconstructions."""
        return self.decode(self.encode(x))

    def loss(
        self, x: Float[Tensor, "n c h w"], source: Source | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Returns the mean squared error a pixel, in units of the range [−1, 1]; nothing is drawn."""
        return {"loss": functional.mse_loss(self(x).float(), x.float())}


class LinearAutoencoder(Bottleneck):
    """One linear layer down, one linear layer up: z = W x + b, x̂ = V z + c, which is not confined to [−1, 1].

    Its least squared error is reached exactly when V W is the projection onto the span of the first `latent`
    principal components; W and V themselves are determined only up to an invertible map of the code.

    Args:
        latent: numbers a code.
        channels: of the images.
        size: their side in pixels.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, latent: int = 32, channels: int = 1, size: int = 28) -> None:
        super().__init__(latent, channels, size)
        d = channels * size**2
        self.down, self.up = nn.Linear(d, latent), nn.Linear(latent, d)

    def _down(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent"]:
        return self.down(rearrange(x, "n c h w -> n (c h w)"))

    def _up(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c h w"]:
        return rearrange(self.up(z), "n (c h w) -> n c h w", c=self.channels, h=self.size)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n c h w"]) -> "LinearAutoencoder":
        """Puts the weights at the optimum for these images: the code is the coordinates along principal axes.

        Raises:
            ValueError: if the images have another shape, or fewer principal components than the code has numbers.
        """
        self._check_images(x)
        found = principal_components(x, self.latent)
        self.down.weight.copy_(found.axes)
        self.down.bias.copy_(-found.axes @ found.mean)
        self.up.weight.copy_(found.axes.T)
        self.up.bias.copy_(found.mean)
        return self


# --- 2. Deep autoencoders -------------------------------------------------------------------------------------------


def _perceptron(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(Bottleneck):
    """A deep autoencoder with squared error; a tanh at the end keeps its images in [−1, 1].

    The convolutional one passes through 6·width numbers on each side of the code, the perceptron through 8·width: a
    code of more numbers than that is no wider a bottleneck.

    Args:
        latent: numbers a code: the bottleneck.
        channels: of the images, 1 or 3.
        size: their side in pixels; the convolutional one takes 28, 32, 64 and others that can be halved to at most 8.
        width: scales all layers. At 16 and for grey 28×28 images, the convolutional one has about 0.69 M parameters
            and the perceptron, with layers of 256 and 128 units, about 0.48 M.
        network: "convolutional" or "mlp".

    Raises:
        ValueError: if the size does not suit, a number is not positive, or there is no such network.
    """

    def __init__(
        self,
        latent: int = 32,
        channels: int = 1,
        size: int = 28,
        width: int = 16,
        network: str = "convolutional",
    ) -> None:
        super().__init__(latent, channels, size)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        self.width, self.network = width, network
        if network == "convolutional":
            self.encoder: nn.Module = ConvEncoder(channels, size, width, latent)
            decoder: nn.Module = ConvDecoder(latent, channels, size, width)
        elif network == "mlp":
            pixels, wide, narrow = channels * size**2, 16 * width, 8 * width
            self.encoder = nn.Sequential(nn.Flatten(), *_perceptron(pixels, wide, narrow, latent))
            decoder = nn.Sequential(
                *_perceptron(latent, narrow, wide, pixels),
                nn.Unflatten(1, (channels, size, size)),
            )
            he_initialise(self.encoder)
            he_initialise(decoder)
        else:
            raise unknown_name("network", network, ["convolutional", "mlp"])
        # The tanh keeps pixels in range; most are black or white, where it is flat and easily exact.
        self.decoder = nn.Sequential(decoder, nn.Tanh())

    def _down(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n latent"]:
        return self.encoder(x)

    def _up(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c h w"]:
        return self.decoder(z)

    def encode_windows(self, x: Float[Tensor, "n c H W"]) -> Float[Tensor, "n latent rows columns"]:
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


def fit_gaussian(codes: Float[Tensor, "n d"], floor: float = 1e-6) -> LatentMixture:
    """Returns one Gaussian with the codes' mean and covariance (divided by n, the maximum of the likelihood).

    Args:
        codes: at least two.
        floor: share of the mean variance that is added to each variance, for codes that do not fill the space.

    Raises:
        ValueError: if there are fewer than two codes.
    """
    return fit_mixture(codes, 1, floor=floor)


def fit_mixture(
    codes: Float[Tensor, "n d"],
    parts: int,
    source: torch.Generator | None = None,
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    floor: float = 1e-6,
) -> LatentMixture:
    """Fits a mixture of Gaussians to codes by expectation–maximisation, from a k-means++ start.

    Args:
        codes: more than the number of parts.
        parts: K.
        source: draws the start; not needed for one part.
        iterations: at most so many.
        tolerance: stop when the mean log-likelihood gains less than this, in nats a code.
        floor: share of the mean variance of the codes that is added to each part's variances.

    Raises:
        ValueError: if there are too few codes, or a start must be drawn and there is no generator.
    """
    z = codes.detach().double()
    n, d = z.shape
    if parts < 1 or n <= parts:
        raise ValueError(
            f"a mixture of {parts} parts needs parts ≥ 1 and more codes than parts, got {n} codes."
        )
    ridge = floor * z.var(0, correction=0).mean() * torch.eye(d, dtype=z.dtype, device=z.device)
    r = z.new_ones(n, 1)
    if parts > 1:
        if source is None:
            raise ValueError("the start of a mixture is drawn: give a torch.Generator.")
        centres = _spread_out(z, parts, source)
        r = functional.one_hot(torch.cdist(z, centres).argmin(1), parts).double()
    before = -math.inf
    for _ in range(iterations):
        # M-step: weighted moments.
        mass = r.sum(0).clamp(min=1e-8)
        means = (r.T @ z) / mass[:, None]
        off = z - means[:, None]  # k n d
        scatter = (off * r.T[..., None]).mT @ off
        covariances = scatter / mass[:, None, None] + ridge
        found = LatentMixture(mass / mass.sum(), means, covariances)
        # E-step.
        joint = found._log_joint(z)
        now = float(joint.logsumexp(1).mean())
        if parts == 1 or now - before < tolerance:
            break
        r, before = joint.softmax(1), now
    return found


def _spread_out(
    z: Float64[Tensor, "n d"], parts: int, source: torch.Generator
) -> Float64[Tensor, "k d"]:
    """Points as first centres: each is drawn with probability in proportion to its squared distance to the nearest."""
    chosen = [int(integers(len(z), (1,), source))]
    while len(chosen) < parts:
        distance = torch.cdist(z, z[chosen]).amin(1) ** 2
        if float(distance.sum()) == 0:
            raise ValueError(f"the codes hold fewer than {parts} different points.")
        edges = distance.cumsum(0) / distance.sum()
        u = uniform((1,), source, z.device).double()
        chosen.append(min(int(torch.searchsorted(edges, u, right=True)), len(z) - 1))
    return z[chosen]


@torch.no_grad()
def sample(
    model: nn.Module, density: LatentMixture, n: int, source: Source
) -> Float[Tensor, "n c h w"]:
    """Draws images: codes from a density, decoded, clamped to [−1, 1]."""
    return model.decode(density.sample(n, source)).clamp(-1, 1)
