"""Spectral normalisation: every layer's weight matrix divided by its largest singular value.

After Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018 (Algorithm 1). A linear or
convolutional layer treated so stretches no input by more than about a factor of one, so a discriminator built of
such layers and 1-Lipschitz activations has a bounded slope, whatever its training does.

As in the paper, a convolution's weight counts as the matrix "out × (in·height·width)"; the norm of that matrix is not
exactly the norm of the convolution, which also depends on how the kernel's positions overlap.

`torch.nn.utils.parametrizations.spectral_norm` does the same in full precision. But it makes NaN of a weight that is
zero, and on a GPU its matrix-vector products are among those that autocast computes in half precision, where σ keeps
three digits; so this book has its own.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

# Steps of the power iteration before training, so that the first division is by the right number.
FIRST_STEPS = 31


def as_matrix(weight: Float[Tensor, "out *shape"]) -> Float[Tensor, "out m"]:
    """Returns a layer's weight as the matrix whose largest singular value is meant."""
    return weight.flatten(1)


def _direction(vector: Float[Tensor, " m"], otherwise: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The unit vector along another; where that is zero and has no direction, what is given instead."""
    return torch.where(vector.norm() > 0, F.normalize(vector, dim=0), otherwise)


class SpectralNorm(nn.Module):
    """Divides a weight by an estimate of its largest singular value, from one step of power iteration at each use.

    The iteration runs in training mode only, and its vectors are buffers: in evaluation mode the layer is a fixed
    function. A gradient flows through W and through σ = uᵀWv, with u and v held constant. A weight of zeros stays
    zero, and is normalised from the first step on that makes it something else.

    Args:
        weight: to start from.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Float[Tensor, "out *shape"]) -> None:
        super().__init__()
        matrix = as_matrix(weight.detach())
        u = F.normalize(torch.randn(len(matrix)).to(matrix), dim=0)
        even = torch.full_like(matrix[0], matrix.shape[1] ** -0.5)
        self.register_buffer("u", u)
        self.register_buffer("v", _direction(matrix.T @ u, even))
        # Where a network is only measured for size, there are no values to iterate on, and each step is slow.
        for _ in range(0 if matrix.is_meta else FIRST_STEPS):
            self._iterate(matrix)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.u.copy_(_direction(matrix @ self.v, self.u))
        self.v.copy_(_direction(matrix.T @ self.u, self.v))

    def forward(self, weight: Float[Tensor, "out *shape"]) -> Float[Tensor, "out *shape"]:
        """Returns the weight with a largest singular value of about one."""
        # Not in bf16: three digits of σ would be lost to save nothing, the matrix being tiny beside the images.
        with torch.autocast(weight.device.type, enabled=False):
            matrix = as_matrix(weight)
            if self.training:
                self._iterate(matrix.detach())
            # Copies, since the next use in the same step moves the buffers and backward needs these.
            u, v = self.u.clone(), self.v.clone()
            sigma = torch.dot(u, matrix @ v)
            return weight / torch.where(sigma == 0, torch.ones_like(sigma), sigma)


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Makes a linear, convolutional or embedding layer use its weight divided by its largest singular value."""
    # "unsafe" leaves out a trial run, which would need the weight's values where a network is only measured for size.
    weight = layer.get_parameter("weight")
    parametrize.register_parametrization(layer, "weight", SpectralNorm(weight), unsafe=True)
    return layer
