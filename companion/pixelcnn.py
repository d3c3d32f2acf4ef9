"""PixelCNN: P(x) = Π_i P(x_i | x_1 … x_{i−1}) over the pixels in the order of reading, by convolutions.

1. `PixelCNNConfig` holds the settings of both kinds of network.
2. The masked convolutions: a plain PixelCNN masks one kernel, a gated one has two stacks and so no blind spot.
3. `PixelCNN`: likelihood, samples, completions.
4. Drawing with buffers: what has been computed for the pixels before is kept, so that a pixel costs one column of
   each convolution and not a whole image.

References:
    van den Oord, Kalchbrenner and Kavukcuoglu, Pixel Recurrent Neural Networks, 2016 (a): the plain network, masks A
        and B.
    van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016 (b): gates, two stacks, labels.
    Salimans et al., PixelCNN++, 2017: the mixture of discretised logistics.
    Ramachandran et al., Fast Generation for Convolutional Autoregressive Models, 2017: the buffers.

Deviations, and why. Every position has an embedding, its row's and its column's, since digits are centred; without it
the network has to measure its distance from the border. The vertical stack has residual connections as well as the
horizontal one: it trains faster. Both stacks see the image shifted, by a row and by a pixel, in their first layer, so
that the later ones need no shift between them; what an output depends on is the same. Dilated kernels
(`dilation_cycle`) see farther at the same cost.

Symbols: x the image, v and h the features of the vertical and the horizontal stack, r the reach of a kernel to one
side.
Shapes: `n` images of `c` channels, `h` rows and `w` columns; `k` parameters for each pixel.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.distributions import LogisticMixture, binarise
from companion.nn.decoding import choose
from companion.nn.transformer import evaluating
from companion.randomness import Source, integers, source_of, uniform

Likelihood = Literal["categorical", "logistic-mixture"]

# --- 1. Settings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PixelCNNConfig:
    """The settings of a `PixelCNN`.

    Attributes:
        channels: of the images.
        size: their side in pixels.
        classes: number of labels the model is conditional on; 0 for none.
        width: channels of the features; with the categorical likelihood a multiple of `channels`, and of twice as many
            for the plain network.
        layers: residual blocks after the first convolution.
        kernel: side of their kernels, odd.
        first_kernel: side of the first convolution's kernel, odd.
        dilation_cycle: the blocks' kernels are dilated by 1, 2, 4 … in a cycle of so many; 1 dilates none.
        gated: two stacks with gates (2016 b); otherwise one stack of masked kernels (2016 a).
        likelihood: "categorical" is a softmax over the levels, "logistic-mixture" that of PixelCNN++.
        levels: values that a number of a pixel can have; 2 for black and white images, which are drawn anew from the
            grey ones whenever they are scored (dynamic binarisation).
        mixtures: components of the logistic mixture.
        dropout: share of features dropped in training, from 0 up to but not including 1.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    classes: int = 0
    width: int = 32
    layers: int = 7
    kernel: int = 3
    first_kernel: int = 7
    dilation_cycle: int = 3
    gated: bool = True
    likelihood: Likelihood = "categorical"
    levels: int = 2
    mixtures: int = 10
    dropout: float | int = 0.0

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, width=self.width)
        checks.whole(0, classes=self.classes)
        checks.whole(1, checks.MOST_LAYERS, layers=self.layers)
        checks.whole(3, kernel=self.kernel, first_kernel=self.first_kernel)
        checks.whole(1, 8, dilation_cycle=self.dilation_cycle)
        checks.flag(gated=self.gated)
        checks.one_of(get_args(Likelihood), likelihood=self.likelihood)
        checks.whole(2, 256, levels=self.levels)
        checks.whole(1, mixtures=self.mixtures)
        checks.number(0, 1, dropout=self.dropout)
        for name in ("kernel", "first_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(
                    f"{name} must be odd, so that it has a middle, got {getattr(self, name)}; "
                    f"choose {getattr(self, name) + 1}."
                )
        parts = self.groups * (1 if self.gated else 2)
        if self.width % parts:
            raise ValueError(
                f"width must be a multiple of {parts}, one part for each channel's features"
                f"{'' if self.gated else ', halved inside the blocks'}; got {self.width}."
            )
        if self.likelihood == "logistic-mixture" and self.levels == 2:
            raise ValueError(
                "levels 2 has no neighbouring values for a logistic to spread over; choose likelihood 'categorical', "
                "or levels 256 for bytes."
            )

    @property
    def groups(self) -> int:
        """Parts of the features, one a channel: a softmax for green may see the pixel's red, but no more."""
        return self.channels if self.likelihood == "categorical" else 1

    @property
    def parameters(self) -> int:
        """Numbers that the network returns for each pixel."""
        c = self.channels
        if self.likelihood == "categorical":
            return c * self.levels
        return self.mixtures * (1 + 2 * c + c * (c - 1) // 2)


# --- 2. Masked convolutions -------------------------------------------------------------------------------------------


def _group(features: int, groups: int, copies: int) -> Tensor:
    """Returns the group that each feature belongs to, if the features are `copies` times all groups in turn."""
    each = features // copies
    return torch.arange(features) % each * groups // each


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees the pixels before, in the order of reading; of the current one, earlier channels.

    The kernel's last row is the current one and its last column there may see the current pixel. A kernel may have
    columns to the right of it as well: all are seen in the rows above and none in the current one.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: rows and columns.
        mask: "A" hides a group of features of the current pixel from itself, "B" shows it.
        groups_of_features: parts of the features, one a channel of the image.
        copies: of all groups in turn that inputs and outputs consist of.
        right: columns of the kernel to the right of the current pixel.
        dilation: distance of neighbouring taps.
    """

    mask: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int] = (1, 1),
        *,
        mask: Literal["A", "B"] = "B",
        groups_of_features: int = 1,
        copies: tuple[int, int] = (1, 1),
        right: int = 0,
        dilation: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, dilation=dilation)
        rows, columns = kernel
        g_in = _group(inputs, groups_of_features, copies[0])
        g_out = _group(outputs, groups_of_features, copies[1])
        shown = torch.ones(outputs, inputs, rows, columns)
        middle = columns - 1 - right
        shown[:, :, -1, middle + 1 :] = 0
        later = g_out[:, None] > g_in if mask == "A" else g_out[:, None] >= g_in
        shown[:, :, -1, middle] = later.float()
        # Then there is no mask to multiply by.
        self.all_shown = mask == "B" and groups_of_features == 1 and right == 0
        self.right = right
        self.register_buffer("mask", shown, persistent=False)
        nn.init.normal_(self.weight, 0.0, (inputs * rows * columns) ** -0.5)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def kernel(self) -> Float[Tensor, "o i a b"]:
        """Returns the weights, with zeros for what is not seen."""
        return self.weight if self.all_shown else self.weight * self.mask

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h w"]:
        (rows, columns), (d, _) = self.kernel_size, self.dilation
        left, right = (columns - 1 - self.right) * d, self.right * d
        if left or right or rows > 1:
            x = F.pad(x, (left, right, (rows - 1) * d, 0))
        return F.conv2d(x, self.kernel(), self.bias, dilation=self.dilation)


def _gate(x: Tensor, dim: int = 1) -> Tensor:
    """tanh(a) σ(b) of the two halves."""
    a, b = x.chunk(2, dim=dim)
    return a.tanh() * b.sigmoid()


class GatedBlock(nn.Module):
    """One layer of the two stacks (2016 b, Fig. 2): v sees all rows above, h what lies to the left and v.

    Args:
        c: the network's settings.
        dilation: of the kernels.
        last: of the network: nothing comes after it but the sum of what all layers hand over.
    """

    def __init__(self, c: PixelCNNConfig, dilation: int, last: bool) -> None:
        super().__init__()
        p, r, g = c.width, c.kernel // 2, c.groups
        # v at a row holds nothing of that row's pixels: so the kernel's current row may see both sides.
        self.vertical = nn.Conv2d(p, 2 * p, (r + 1, c.kernel), dilation=dilation)
        self.link = nn.Conv2d(2 * p, 2 * p, 1)
        self.horizontal = MaskedConv2d(
            p, 2 * p, (1, r + 1), groups_of_features=g, copies=(1, 2), dilation=dilation
        )
        self.out = MaskedConv2d(
            p, p if last else 2 * p, groups_of_features=g, copies=(1, 1 if last else 2)
        )
        self.label = nn.Embedding(c.classes, 4 * p) if c.classes else None
        self.dropout = nn.Dropout(c.dropout)
        self.last = last
        self.reach = r * dilation
        for conv in (self.vertical, self.link):
            nn.init.normal_(conv.weight, 0.0, conv.weight[0].numel() ** -0.5)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def biases(self, labels: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Returns what a label adds to the two stacks, before the gates (2016 b, Eq. 4)."""
        if self.label is None or labels is None:
            return None
        a, b = rearrange(self.label(labels), "n (s k) -> s n k 1 1", s=2)
        return a, b

    def forward(
        self, v: Float[Tensor, "n p h w"], h: Float[Tensor, "n p h w"], labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns v, h, and what the layer adds to the skip connections."""
        r = self.reach
        above = self.vertical(F.pad(v, (r, r, r, 0)))
        bias = self.biases(labels)
        if bias is not None:
            above = above + bias[0]
        before = self.horizontal(h) + self.link(above)
        if bias is not None:
            before = before + bias[1]
        out = self.out(self.dropout(_gate(before)))
        if self.last:
            return v, h, out
        residual, skip = out.chunk(2, dim=1)
        return v + self.dropout(_gate(above)), h + residual, skip


class PlainBlock(nn.Module):
    """A residual block of the plain network (2016 a, Fig. 5): 1×1 to half the width, k×k with mask B, 1×1 back.

    Args:
        c: the network's settings.
        dilation: of the kernel.
    """

    def __init__(self, c: PixelCNNConfig, dilation: int) -> None:
        super().__init__()
        p, r, g = c.width, c.kernel // 2, c.groups
        self.down = MaskedConv2d(p, p // 2, groups_of_features=g)
        self.middle = MaskedConv2d(
            p // 2, p // 2, (r + 1, c.kernel), groups_of_features=g, right=r, dilation=dilation
        )
        self.up = MaskedConv2d(p // 2, p, groups_of_features=g)
        self.label = nn.Embedding(c.classes, p // 2) if c.classes else None
        self.dropout = nn.Dropout(c.dropout)
        self.reach = r * dilation

    def forward(self, h: Float[Tensor, "n p h w"], labels: Tensor | None) -> Tensor:
        middle = self.middle(self.down(h.relu()).relu())
        if self.label is not None and labels is not None:
            middle = middle + self.label(labels)[:, :, None, None]
        return h + self.up(self.dropout(middle.relu()))


# --- 3. The network ---------------------------------------------------------------------------------------------------


class PixelCNN(nn.Module):
    """An autoregressive convolutional network over square images in [−1, 1].

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "pixelcnn".
    """

    Config = PixelCNNConfig

    def __init__(self, config: PixelCNNConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or PixelCNNConfig()
        p, g, r = c.width, c.groups, c.first_kernel // 2
        copies = (1, 1)
        self.row = nn.Parameter(torch.zeros(p, c.size, 1))
        self.column = nn.Parameter(torch.zeros(p, 1, c.size))
        dilations = [2 ** (i % c.dilation_cycle) for i in range(c.layers)]
        if c.gated:
            # The rows above, and the pixels to the left: between them, all that is known.
            self.first_vertical = nn.Conv2d(c.channels, p, (r, c.first_kernel))
            self.first = MaskedConv2d(
                c.channels, p, (1, r + 1), mask="A", groups_of_features=g, copies=copies
            )
            self.first_link = nn.Conv2d(p, p, 1)
            self.blocks = nn.ModuleList(
                GatedBlock(c, d, i == c.layers - 1) for i, d in enumerate(dilations)
            )
        else:
            self.first = MaskedConv2d(
                c.channels, p, (r + 1, c.first_kernel), mask="A", groups_of_features=g, right=r
            )
            self.blocks = nn.ModuleList(PlainBlock(c, d) for d in dilations)
        self.hidden = MaskedConv2d(p, p, groups_of_features=g)
        self.head = MaskedConv2d(p, c.parameters, groups_of_features=g)

    # -- The distribution -----------------------------------------------------------------------------------------

    def _labels(self, labels: Tensor | None, n: int) -> Tensor | None:
        classes = self.config.classes
        if (labels is None) != (classes == 0):
            raise ValueError(
                f"this PixelCNN has {classes} classes: give each image's label."
                if classes
                else "this PixelCNN was built without classes: leave the labels out."
            )
        if labels is None:
            return None
        if labels.shape != (n,):
            raise ValueError(f"{n} images need {n} labels, got the shape {tuple(labels.shape)}.")
        if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"labels must be whole numbers from 0 to {classes - 1}, got some from {int(labels.min())} to "
                f"{int(labels.max())}."
            )
        return labels.to(self.row.device)

    def forward(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n k h w"]:
        """Returns the parameters of every pixel's distribution given the pixels before it, in the order of reading.

        For the categorical likelihood they are logits, those of a channel's levels beside one another; for the logistic
        mixture what `companion.distributions.LogisticMixture.from_parameters` takes.

        Args:
            x: images in [−1, 1], of the levels that the network models.
            labels: one per image, for a conditional model.

        Raises:
            TypeError: if the images are bytes.
            ValueError: for images of another shape, or labels that are missing, too many or unknown.
        """
        c = self.config
        checks.images(x, c.channels, c.size, "PixelCNN")
        labels = self._labels(labels, len(x))
        places = self.row + self.column
        if not c.gated:
            h = self.first(x) + places
            for block in self.blocks:
                h = block(h, labels)
            return self.head(self.hidden(h.relu()).relu())
        r = c.first_kernel // 2
        # One row of padding too many: the last row of the result would see the row after the last.
        v = self.first_vertical(F.pad(x, (r, r, r, 0)))[:, :, :-1] + places
        h = self.first(x) + self.first_link(v)
        skips = torch.zeros_like(h)
        for block in self.blocks:
            v, h, skip = block(v, h, labels)
            skips = skips + skip
        return self.head(self.hidden(F.relu(skips)).relu())

    def observe(
        self, x: Float[Tensor, "n c h w"], source: Source | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Turns grey values into those that are modelled: random black or white, or the nearest level.

        Raises:
            ValueError: if grey values are to be drawn as black or white and there is no source.
        """
        if self.config.levels == 2:
            if source is not None:
                return binarise(x, source)
            if not x.abs().eq(1).all():
                raise ValueError(
                    "this PixelCNN is of black and white images, and these are grey: give a source of random numbers "
                    "to draw them from, or binarised ones."
                )
            return x
        return self._values(self._levels(x))

    def _levels(self, x: Tensor) -> Tensor:
        """Returns the numbers of the nearest levels, 0 … levels − 1."""
        top = self.config.levels - 1
        return ((x.float() + 1) * (top / 2)).round().clamp(0, top).long()

    def _values(self, level: Tensor) -> Tensor:
        # As `companion.data.to_float` maps bytes.
        return level.float() / ((self.config.levels - 1) / 2) - 1

    def log_probs(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n h w"]:
        """Returns log P of every pixel, of all its channels, given those before it, in nats, in float32.

        Args:
            x: images as `observe` returns them.
            labels: one per image, for a conditional model.
        """
        c = self.config
        parameters = self(x, labels).float()
        if c.likelihood == "logistic-mixture":
            return LogisticMixture.from_parameters(parameters, c.channels, c.levels).log_prob(x)
        logits = rearrange(parameters, "n (c l) h w -> n l c h w", c=c.channels)
        return -F.cross_entropy(logits, self._levels(x), reduction="none").sum(dim=1)

    def nll(
        self,
        x: Float[Tensor, "n c h w"],
        source: Source | None = None,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Returns −log P of each image, in nats.

        Args:
            x: images in [−1, 1].
            source: of the pixels' noise, for grey images and a model of black and white ones.
            labels: one per image, for a conditional model.
        """
        checks.images(x, self.config.channels, self.config.size, "PixelCNN")
        return -self.log_probs(self.observe(x, source), labels).sum(dim=(1, 2))

    def loss(
        self,
        x: Float[Tensor, "n c h w"],
        source: Source | None = None,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> dict[str, Tensor]:
        """Returns "loss", the mean over the batch in nats per number, and "nats" per image."""
        nats = self.nll(x, source, labels).mean()
        # Of the order of one, whatever the size: so the same learning rates and clips suit all.
        return {"loss": nats / x[0].numel(), "nats": nats.detach()}

    # -- Drawing --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Int64[Tensor, " n"] | None = None,
        cached: bool = True,
        means: bool = False,
    ) -> Float[Tensor, "n c h w"]:
        """Draws images, in [−1, 1], pixel by pixel.

        Args:
            n: how many.
            source: of the labels, where they are drawn, and of the pixels.
            seed: in place of a source; image i is then a function of the seed and of i alone.
            labels: one per image, for a conditional model; left out, they are drawn, all classes alike.
            cached: keep what was computed for earlier pixels; changes the time and not the images.
            means: return, in place of each number that was drawn, its mean given the pixels before it: grey values of
                black and white images.

        Raises:
            ValueError: unless exactly one of source and seed is given, or for labels that the model does not know.
        """
        checks.whole(1, n=n)
        source = source_of(n, source, seed)
        if labels is None and self.config.classes:
            labels = integers(self.config.classes, (n,), source)
        canvas = _Canvas(self, n, source, labels, cached=cached)
        for _ in canvas.rows():
            pass
        return (canvas.means if means else canvas.x).clone()

    @torch.no_grad()
    def complete(
        self,
        x: Float[Tensor, "n c h w"],
        known: int | Bool[Tensor, "a b"],
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Int64[Tensor, " n"] | None = None,
        cached: bool = True,
        means: bool = False,
    ) -> Float[Tensor, "n c h w"]:
        """Keeps the known pixels of images and draws the others, each given those before it, known or drawn.

        Where the known pixels come first in the order of reading, as upper rows do, that is a draw from the model's
        distribution given them. Otherwise it is not: a pixel does not look at the known ones after it.

        Args:
            x: images in [−1, 1], of which known pixels are taken at their nearest level.
            known: how many rows from the top, or True for each pixel that stays.
            source: of the pixels that are drawn.
            labels: one per image, for a conditional model; none are drawn.
            seed, cached, means: as for `sample`.

        Raises:
            TypeError: if the images are bytes, or the mask is not of True and False.
            ValueError: if so many rows are not there, or the mask has another shape.
        """
        c = self.config
        checks.images(x, c.channels, c.size, "PixelCNN")
        if isinstance(known, Tensor):
            if known.dtype != torch.bool:
                raise TypeError(
                    f"known must be a mask of True (stays) and False (is drawn), got {known.dtype}."
                )
            if known.shape != (c.size, c.size):
                raise ValueError(
                    f"a mask has the shape of the pixels, ({c.size}, {c.size}), got {tuple(known.shape)}."
                )
            mask = known
        else:
            checks.whole(0, c.size, known=known)
            mask = (torch.arange(c.size) < known)[:, None].expand(c.size, c.size)
        source = source_of(len(x), source, seed)
        # Nothing is drawn for what is known: completing a draw with its own numbers gives that draw.
        x = self._values(self._levels(x))
        canvas = _Canvas(self, len(x), source, labels, cached=cached, given=x, mask=mask)
        for _ in canvas.rows():
            pass
        return (canvas.means if means else canvas.x).clone()

    @torch.no_grad()
    def draw_rows(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Iterator[Float[Tensor, "n c h w"]]:
        """Draws as `sample` does, and yields the unfinished images after every row; what is not drawn yet is black.

        Args:
            n, source, seed, labels: as for `sample`.
        """
        checks.whole(1, n=n)
        source = source_of(n, source, seed)
        if labels is None and self.config.classes:
            labels = integers(self.config.classes, (n,), source)
        canvas = _Canvas(self, n, source, labels)
        for row in canvas.rows():
            partial = canvas.x.clone()
            partial[:, :, row + 1 :] = -1.0
            yield partial

    def receptive_field(self, row: int, column: int, channel: int = 0) -> Float[Tensor, "c h w"]:
        """Returns how much every number of the image moves a pixel's parameters: absolute gradients of a random image.

        Zeros are what the pixel cannot see. A sum of the parameters with random signs is differentiated, in float64,
        so that no gradients cancel.

        Args:
            row: of the pixel.
            column: of the pixel.
            channel: whose distribution, for colour images with the categorical likelihood.

        Raises:
            ValueError: if there is no such pixel.
        """
        c = self.config
        checks.whole(0, c.size - 1, row=row, column=column)
        checks.whole(0, c.channels - 1, channel=channel)
        network, g = copy.deepcopy(self).double().eval(), torch.Generator().manual_seed(0)
        device = self.row.device
        x = torch.rand(1, c.channels, c.size, c.size, generator=g, dtype=torch.float64)
        x = (2 * x - 1).to(device).requires_grad_(True)
        labels = torch.zeros(1, dtype=torch.int64, device=device) if c.classes else None
        with torch.enable_grad():
            parameters = network(x, labels)[0, :, row, column]
            if c.likelihood == "categorical":
                parameters = parameters[channel * c.levels : (channel + 1) * c.levels]
            signs = torch.randn(len(parameters), generator=g, dtype=torch.float64).to(device)
            (slope,) = torch.autograd.grad((parameters * signs).sum(), x)
        return slope[0].abs().float()

    def _draw(self, parameters: Tensor, u: Tensor, channel: int) -> tuple[Tensor, Tensor]:
        """Returns numbers of one pixel by inversion, and their means: of one channel, or of all for the mixture.

        Args:
            parameters: "n k" of the pixel.
            u: uniform numbers "n m" of the pixel.
            channel: which is drawn, for the categorical likelihood.
        """
        c = self.config
        if c.likelihood == "logistic-mixture":
            mixture = LogisticMixture.from_parameters(
                parameters.float()[:, :, None, None], c.channels, c.levels
            )
            drawn, mean = mixture.sample(u[:, :, None, None])
            return drawn[:, :, 0, 0], mean[:, :, 0, 0]
        logits = parameters[:, channel * c.levels : (channel + 1) * c.levels].float()
        if c.levels == 2:
            # Of two levels it is a comparison, many times faster than sorting a cumulative sum.
            white = (logits[:, 1] - logits[:, 0]).sigmoid()
            drawn = torch.where(u[:, channel] < white, 1.0, -1.0)
            return drawn[:, None], (2 * white - 1)[:, None]
        mean = logits.softmax(dim=1) @ self._values(torch.arange(c.levels, device=logits.device))
        return self._values(choose(logits, u[:, channel]))[:, None], mean[:, None]


# --- 4. Drawing with buffers ------------------------------------------------------------------------------------------


class _Canvas:
    """Images that are being drawn.

    Args:
        network: whose images.
        n: how many.
        source: of all uniform numbers, which are drawn now, also those of known pixels: so a larger known part does
            not move the others' draws.
        labels: one per image, for a conditional model.
        cached: with buffers.
        given: images whose pixels stay where the mask is True.
        mask: which stay; by default none.
    """

    def __init__(
        self,
        network: PixelCNN,
        n: int,
        source: Source,
        labels: Tensor | None,
        *,
        cached: bool = True,
        given: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        c, device = network.config, network.row.device
        self.network, self.cached = network, cached
        self.labels = network._labels(labels, n)
        numbers = c.channels + (c.likelihood == "logistic-mixture")
        self.u = uniform((n, numbers, c.size, c.size), source, device)
        self.x = torch.full((n, c.channels, c.size, c.size), -1.0, device=device)
        self.known = torch.zeros(c.size, c.size, dtype=torch.bool)
        if given is not None and mask is not None:
            self.known = mask.cpu()
            self.x = torch.where(mask.to(device), given.float(), self.x)
        self.means = self.x.clone()

    def rows(self) -> Iterator[int]:
        """Draws row after row and yields the number of each."""
        network, known = self.network, self.known.tolist()
        with evaluating(network):
            buffers = _Buffers(network, self.x, self.labels) if self.cached else None
            for i in range(network.config.size):
                self._draw_row(i, known[i], buffers)
                yield i

    @torch.inference_mode()
    def _draw_row(self, i: int, known: list[bool], buffers: "_Buffers | None") -> None:
        c = self.network.config
        if buffers is not None:
            buffers.start_row(i)
        for j in range(c.size):
            if known[j]:
                if buffers is not None:
                    buffers.pixel(i, j)
                continue
            for channel in range(c.groups):
                if buffers is not None:
                    parameters = buffers.pixel(i, j)
                else:
                    parameters = self.network(self.x, self.labels)[:, :, i, j]
                drawn, mean = self.network._draw(parameters, self.u[:, :, i, j], channel)
                which = (
                    slice(channel, channel + 1) if c.likelihood == "categorical" else slice(None)
                )
                self.x[:, which, i, j] = drawn
                self.means[:, which, i, j] = mean


class _Line:
    """A convolution along the current row: a buffer of its inputs, padded to the left, and one matrix.

    Args:
        conv: of kernel rows whose last is the current one.
        n: images.
        columns: pixels of a row.
    """

    def __init__(self, conv: MaskedConv2d, n: int, columns: int) -> None:
        self.taps, self.d = conv.kernel_size[1] - conv.right, conv.dilation[1]
        self.left = (self.taps - 1) * self.d
        weight = conv.kernel()[:, :, -1, : self.taps]
        self.matrix = rearrange(weight, "o i b -> (b i) o").contiguous()
        self.inputs = weight.shape[1]
        self.buffer = weight.new_zeros(n, self.left + columns, self.inputs)

    def put(self, j: int, value: Tensor) -> None:
        self.buffer[:, self.left + j] = value

    def at(self, j: int, rest: Tensor) -> Tensor:
        """Returns rest + the convolution's value at pixel j, whose inputs have been put."""
        taps = self.buffer[:, j : j + self.left + 1 : self.d].reshape(len(self.buffer), -1)
        return torch.addmm(rest, taps, self.matrix)


class _Buffers:
    """What has been computed of images, row by row and pixel by pixel, in every layer.

    A row of the vertical stack depends on finished rows alone, so it is computed at once, and with it all that the
    horizontal stack, or the rows of a plain kernel above the current one, add to the row. What is left for a pixel is
    its own column of the kernels' current rows: one small matrix product a layer.

    Args:
        network: in evaluation mode.
        x: the images, which the caller fills.
        labels: one per image, for a conditional model.
    """

    def __init__(self, network: PixelCNN, x: Tensor, labels: Tensor | None) -> None:
        self.network, self.x = network, x
        c, n = network.config, len(x)
        self.n, self.size, self.gated = n, c.size, c.gated
        # Gated or plain ones, as `gated` says, which no type can say.
        self.blocks: list[Any] = list(network.blocks)
        places = network.row + network.column
        self.places = rearrange(places, "p h w -> h p w")
        self.biases = [b.biases(labels) if c.gated else None for b in self.blocks]
        self.first = _Line(network.first, n, c.size)
        lines = [b.horizontal if c.gated else b.middle for b in self.blocks]
        self.lines = [_Line(conv, n, c.size) for conv in lines]
        self.ends = [_matrix(network.hidden), _matrix(network.head)]
        if c.gated:
            # Rows of the inputs of every vertical convolution, of the last few rows only.
            self.above = [
                x.new_zeros(n, c.width, b.reach + 1, c.size + 2 * b.reach) for b in self.blocks
            ]
            self.outs = [_matrix(b.out) for b in self.blocks]
        else:
            self.labels: list[Any] = [
                None if b.label is None else b.label(labels) for b in self.blocks
            ]
            self.above = [
                x.new_zeros(n, c.width // 2, b.reach, c.size + 2 * b.reach) for b in self.blocks
            ]
            self.downs = [_matrix(b.down) for b in self.blocks]
            self.ups = [_matrix(b.up) for b in self.blocks]

    def start_row(self, i: int) -> None:
        """Computes, for all pixels of row i, what depends on the rows above."""
        r = self.network.config.first_kernel // 2
        seen = self.x.new_zeros(self.n, self.x.shape[1], r, self.size + 2 * r)
        if i:
            last = self.x[:, :, max(0, i - r) : i]
            seen[:, :, r - last.shape[2] :, r : r + self.size] = last
        self.rest = self._gated_row(seen, i) if self.gated else self._plain_row(seen, i)

    def _gated_row(self, seen: Tensor, i: int) -> list[Tensor]:
        network = self.network
        first, start = network.first_vertical, network.first.bias
        assert start is not None
        v = F.conv2d(seen, first.weight, first.bias) + self.places[i][:, None]
        rest = [_columns(network.first_link(v) + start[:, None, None])]
        for block, buffer, bias in zip(self.blocks, self.above, self.biases, strict=True):
            conv, r = block.vertical, block.reach
            buffer[:, :, :-1] = buffer[:, :, 1:].clone()
            buffer[:, :, -1, r : r + self.size] = v[:, :, 0]
            above = F.conv2d(buffer, conv.weight, conv.bias, dilation=conv.dilation)
            if bias is not None:
                above = above + bias[0]
            before = block.link(above) + block.horizontal.bias[:, None, None]
            rest.append(_columns(before if bias is None else before + bias[1]))
            v = v + _gate(above)
        return rest

    def _plain_row(self, seen: Tensor, i: int) -> list[Tensor]:
        first = self.network.first
        v = F.conv2d(seen, first.kernel()[:, :, :-1], first.bias) + self.places[i][:, None]
        rest = [_columns(v)]
        for block, line, buffer, label in zip(
            self.blocks, self.lines, self.above, self.labels, strict=True
        ):
            conv, r = block.middle, block.reach
            if i:
                buffer[:, :, :-1] = buffer[:, :, 1:].clone()
                row = line.buffer[:, line.left :]
                buffer[:, :, -1, r : r + self.size] = rearrange(row, "n w p -> n p w")
            above = F.conv2d(buffer, conv.kernel()[:, :, :-1], conv.bias, dilation=conv.dilation)
            # Of a dilated kernel the buffer has more rows than it takes; the first result is this row's.
            above = above[:, :, :1]
            rest.append(_columns(above if label is None else above + label[:, :, None, None]))
        return rest

    def pixel(self, i: int, j: int) -> Float[Tensor, "n k"]:
        """Returns the parameters of a pixel, of whose own channels some may be known already."""
        if j:
            # Its last channel has been drawn since.
            self.first.put(j - 1, self.x[:, :, i, j - 1])
        self.first.put(j, self.x[:, :, i, j])
        h = self.first.at(j, self.rest[0][j])
        h = self._gated_pixel(h, j) if self.gated else self._plain_pixel(h, j)
        for matrix, bias in self.ends:
            h = torch.addmm(bias, h.relu_(), matrix)
        return h

    def _gated_pixel(self, h: Tensor, j: int) -> Tensor:
        skips: Tensor | None = None
        p = self.network.config.width
        for line, rest, (matrix, bias) in zip(self.lines, self.rest[1:], self.outs, strict=True):
            line.put(j, h)
            out = torch.addmm(bias, _gate(line.at(j, rest[j])), matrix)
            skip = out[:, -p:]
            skips = skip if skips is None else skips + skip
            h = h + out[:, :p]
        assert skips is not None
        return skips.clone()

    def _plain_pixel(self, h: Tensor, j: int) -> Tensor:
        for line, rest, (down, a), (up, b) in zip(
            self.lines, self.rest[1:], self.downs, self.ups, strict=True
        ):
            line.put(j, torch.addmm(a, h.relu(), down).relu_())
            h = h + torch.addmm(b, line.at(j, rest[j]).relu_(), up)
        return h


def _matrix(conv: MaskedConv2d) -> tuple[Tensor, Tensor]:
    """Returns a 1×1 convolution's matrix from inputs to outputs, and its offsets."""
    assert conv.bias is not None
    return conv.kernel()[:, :, 0, 0].T.contiguous(), conv.bias


def _columns(row: Tensor) -> Tensor:
    """Returns a row's features, pixel by pixel: "w n p"."""
    return rearrange(row, "n p 1 w -> w n p").contiguous()
