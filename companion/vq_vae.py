"""The vector-quantised autoencoder (van den Oord et al., 2017), its codebook and how that is learned.

Symbols: x an image, z_e(x) the encoder's vectors (one for each place of a grid), e_1 … e_K the codebook, z_q the
nearest codes, β the weight of the commitment, γ the decay of the codebook's running statistics.

Choices that differ from the paper, and why: patches are cut by pixel-unshuffling, so that all convolutions work on the
small grid of codes, which a CPU does quickly; the codebook starts from k-means on the first batch, and codes that are
hardly used any more start again from vectors of the batch, since otherwise a large part of the codebook is lost; errors
are means over numbers, so that β and the learning rate mean the same for images of all sizes.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.nn.collective import processes, rows_of_processes, sum_over_processes
from companion.nn.layers import ResidualBlock, he_initialise
from companion.randomness import Rows, Source, integers, source_of, uniform

# Distances that are held at a time, in bytes: they stay in a processor's cache.
CHUNK_BYTES = 16 * 2**20
# Codes whose distances are looked at together.
BLOCK = 128
LLOYD_ROUNDS = 10
# Relative rounding of products in float32; PyTorch's "high" and "medium" precision round more coarsely.
ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}


def nearest(z: Float[Tensor, "m d"], codebook: Float[Tensor, "k d"]) -> Int64[Tensor, " m"]:
    """Returns the index of the nearest code of each vector.

    Distances are compared by ‖e‖²/2 − z·e in float32, chunk by chunk. Where the two least lie closer together than
    the bound on their rounding, the candidates are compared anew in float64 from the differences z − e. So the answer
    is that of brute force in float64; of codes at the same distance it is the first.

    Args:
        z: vectors.
        codebook: codes of the same length.
    """
    z, e = z.detach().float(), codebook.detach().float()
    half = e.square().sum(dim=1) / 2
    longest = half.max().mul(2).sqrt()
    unit = (z.shape[1] + 3) * ROUNDING[torch.get_float32_matmul_precision()]
    # ‖e‖²/2 − z·e is one product, of (z, 1) and (−e, ‖e‖²/2). Its length is a multiple of 8, and so is that of the last
    # block of codes: zeros fill up the one, codes at an infinite distance the other.
    longer, more = -(z.shape[1] + 1) % 8, -len(e) % BLOCK
    table = F.pad(torch.cat([-e, half[:, None]], dim=1), (0, longer, 0, more))
    table[len(e) :, z.shape[1]] = math.inf
    rows = max(1, CHUNK_BYTES // (4 * len(table)))
    # One buffer for all chunks: fresh memory would cost a tenth of the time.
    buffer = z.new_empty(min(rows, len(z)), len(table))
    found = [z.new_zeros(0, dtype=torch.int64)]
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        for part in z.split(rows) if len(z) else ():
            one = F.pad(F.pad(part, (0, 1), value=1.0), (0, longer))
            d = torch.mm(one, table.T, out=buffer[: len(part)])
            least, second, index = _two_least(d)
            # Twice the error bound of a distance, γ_d·(‖z‖·‖e‖ + ‖e‖²/2).
            slack = 2 * unit * longest * (part.norm(dim=1) + longest / 2)
            close = (second - least <= slack).nonzero().flatten()
            if len(close):
                limit = (least + slack)[close]
                index[close] = _among_near(part[close], e, d[close] <= limit[:, None])
            found.append(index)
    return torch.cat(found)


def _two_least(d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the least and the second least number of each row, and the place of the least.

    A plain minimum is several times faster than one with its place: so all of a row is looked at once, block by block,
    and the place is looked for in one block.
    """
    blocks = d.unflatten(1, (-1, BLOCK))
    lows = blocks.amin(dim=2)
    block = lows.argmin(dim=1)
    inside = blocks[torch.arange(len(d), device=d.device), block]
    least, place = inside.min(dim=1)
    elsewhere = lows.scatter(1, block[:, None], math.inf).amin(dim=1)
    second = inside.scatter(1, place[:, None], math.inf).amin(dim=1)
    return least, torch.minimum(second, elsewhere), block * BLOCK + place


def _among_near(z: Tensor, e: Tensor, near: Tensor) -> Tensor:
    """Returns the nearest of each row's candidates, compared in float64."""
    exact = torch.full(near.shape, math.inf, dtype=torch.float64, device=z.device)
    row, code = near.nonzero(as_tuple=True)
    pairs = max(1, CHUNK_BYTES // (8 * z.shape[1]))
    for r, c in zip(row.split(pairs), code.split(pairs), strict=True):
        exact[r, c] = (z[r].double() - e[c].double()).square().sum(dim=1)
    least = exact.amin(dim=1, keepdim=True)
    # argmax of a boolean's number is the first of equal ones.
    return (exact == least).int().argmax(dim=1)


def perplexity(counts: Float[Tensor, " k"] | Int64[Tensor, " k"]) -> Float[Tensor, ""]:
    """Returns exp of the entropy of the codes' usage: as many codes, used evenly, would have the same entropy.

    Args:
        counts: how often each code was used; at least one was.
    """
    p = counts.double() / counts.sum()
    return torch.special.entr(p).sum().exp().float()


class Quantised(NamedTuple):
    """What a codebook makes of vectors.

    Attributes:
        z_q: the nearest codes, with the straight-through gradient.
        indices: their numbers.
        losses: "codebook" (Eq. 3, second term; 0 where running means learn the codebook) and "commitment" (third term,
            without its β), means over all numbers.
        perplexity: of the codes' usage in this batch, in training over all processes.
    """

    z_q: Float[Tensor, "*batch d"]
    indices: Int64[Tensor, "*batch"]
    losses: dict[str, Tensor]
    perplexity: Float[Tensor, ""]


class VectorQuantizer(nn.Module):
    """A codebook: vectors are replaced by the nearest of K codes.

    In training mode `forward` also learns: the codebook starts from the first batch, running means follow the vectors
    (codebook "ema"), and codes out of use start again. Counts and sums are those of all processes. With gradients
    accumulated over parts of a batch (which `Rows` tell), the codes stay as they are until the last part, and are then
    updated once, by the whole batch; the start and the restart take vectors of one part. All that the next step needs
    is in the buffers.

    A running average of a network's weights copies the buffers of this one as they are: the codes are averages already.

    Args:
        codes: K.
        dim: length of a code.
        codebook: "gradient" for Eq. 3's second term, "ema" for running means (appendix A.1).
        decay: γ of the running means, and of the usage by which codes are restarted.
        epsilon: of the Laplace smoothing of counts.
        restart: a code whose running usage falls below this share of the fair one (1/K) starts again; 0 never.
        start: "k-means" on the first batch in training, or "uniform" in ±1/K.
        straight_through: let the gradient at z_q be that at z; otherwise nothing of it reaches z.

    Raises:
        ValueError: for a setting that cannot work.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    batch_counts: Tensor
    batch_sums: Tensor
    started: Tensor

    def __init__(
        self,
        codes: int = 512,
        dim: int = 16,
        *,
        codebook: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        epsilon: float = 1e-5,
        restart: float | int = 0.03,
        start: Literal["k-means", "uniform"] = "k-means",
        straight_through: bool = True,
    ) -> None:
        super().__init__()
        checks.whole(1, codes=codes, dim=dim)
        checks.one_of(["ema", "gradient"], codebook=codebook)
        checks.one_of(["k-means", "uniform"], start=start)
        checks.number(0, 1, decay=decay, restart=restart)
        checks.number(above=0, epsilon=epsilon)
        checks.flag(straight_through=straight_through)
        self.codes, self.dim, self.kind = codes, dim, codebook
        self.decay, self.epsilon, self.restart = decay, epsilon, restart
        self.straight_through = straight_through
        # Whether training takes vectors at random, sooner or later.
        self.draws = start == "k-means" or restart > 0
        e = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
        if codebook == "gradient":
            self.codebook = nn.Parameter(e)
        else:
            self.register_buffer("codebook", e)
            # A count of one beside each code: m = N·e from the beginning.
            self.register_buffer("sums", e.clone())
            self.register_buffer("batch_sums", torch.zeros(codes, dim), persistent=False)
        self.register_buffer("counts", torch.ones(codes))
        # What the parts of this step's batch have added up to so far; zero between steps.
        self.register_buffer("batch_counts", torch.zeros(codes), persistent=False)
        self.register_buffer("started", torch.tensor(int(start == "uniform")))

    def lookup(self, indices: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """Returns the codes of some numbers.

        Raises:
            ValueError: if one is not in 0 … K − 1.
        """
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.codes:
            raise ValueError(
                f"tokens must lie in 0…{self.codes - 1}, got {int(indices.min())}…{int(indices.max())}: "
                "are they another model's?"
            )
        return F.embedding(indices, self.codebook)

    def forward(self, z: Float[Tensor, "*batch d"], source: Source | None = None) -> Quantised:
        """Quantises vectors, and in training mode learns from them.

        Args:
            z: vectors; the first dimension counts images.
            source: of the vectors from which codes start; needed in training with k-means or restarts.

        Raises:
            ValueError: if the vectors have another length, there are none, or a source is needed and missing.
        """
        if z.shape[-1] != self.dim or z.ndim < 2 or not z.numel():
            raise ValueError(
                f"this codebook takes one or more vectors of {self.dim} numbers, got the shape {tuple(z.shape)}."
            )
        if self.training and source is None and self.draws:
            raise ValueError(
                "in training this codebook draws vectors at random: give forward a source."
            )
        z = z.float()
        flat = z.reshape(-1, self.dim)
        if self.training and not int(self.started):
            self._start(z.detach(), source)
        indices = nearest(flat, self.codebook).view(z.shape[:-1])
        e = F.embedding(indices, self.codebook)
        losses = {
            "codebook": F.mse_loss(e, z.detach()) if self.kind == "gradient" else z.new_zeros(()),
            "commitment": F.mse_loss(z, e.detach()),
        }
        counts = torch.bincount(indices.flatten(), minlength=self.codes).float()
        if self.training:
            counts = sum_over_processes(counts)
            self._learn(z.detach(), indices, counts, source)
        z_q = e.detach()
        if self.straight_through:
            # Plus zero, exactly: the value is the code's own, and the gradient goes to z.
            z_q = z_q + (z - z.detach())
        return Quantised(z_q, indices, losses, perplexity(counts))

    # -- Learning -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _learn(self, z: Tensor, indices: Tensor, counts: Tensor, source: Source | None) -> None:
        self.batch_counts += counts
        if self.kind == "ema":
            sums = torch.zeros_like(self.sums)
            sums.index_add_(0, indices.flatten(), z.reshape(-1, self.dim))
            self.batch_sums += sum_over_processes(sums)
        if not _last_part(source):
            return
        # Appendix A.1: N ← γN + (1 − γ)n, m ← γm + (1 − γ)Σz.
        self.counts.lerp_(self.batch_counts, 1 - self.decay)
        if self.kind == "ema":
            self.sums.lerp_(self.batch_sums, 1 - self.decay)
            total = self.counts.sum()
            smooth = (self.counts + self.epsilon) / (total + self.codes * self.epsilon) * total
            self.codebook.copy_(self.sums / smooth[:, None])
            self.batch_sums.zero_()
        self.batch_counts.zero_()
        if self.restart:
            self._restart(z, source)

    @torch.no_grad()
    def _restart(self, z: Tensor, source: Source | None) -> None:
        """Gives codes out of use new places: vectors of the batch, the same in all processes."""
        fair = self.counts.sum() / self.codes
        dead = (self.counts < self.restart * fair).nonzero().flatten()
        if not len(dead):
            return
        new = self._shuffled(z, source)
        self.codebook[dead] = new[torch.arange(len(dead), device=z.device) % len(new)]
        self.counts[dead] = fair
        if self.kind == "ema":
            self.sums[dead] = fair * self.codebook[dead]

    @torch.no_grad()
    def _start(self, z: Tensor, source: Source | None) -> None:
        """Lloyd's algorithm on the vectors of all processes, from vectors drawn at random."""
        vectors = self._shuffled(z, source)
        e = vectors[torch.arange(self.codes, device=z.device) % len(vectors)].clone()
        for _ in range(LLOYD_ROUNDS):
            index = nearest(vectors, e)
            counts = torch.bincount(index, minlength=self.codes).float()
            sums = torch.zeros_like(e).index_add_(0, index, vectors)
            # Where nothing is nearest the code stays; its count of one goes with it.
            e = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], e)
        self.codebook.copy_(e)
        self.counts.copy_(counts.clamp(min=1))
        if self.kind == "ema":
            self.sums.copy_(self.counts[:, None] * e)
        self.started.fill_(1)

    def _shuffled(self, z: Tensor, source: Source | None) -> Tensor:
        """Returns the vectors of all processes in a random order, which is the same in all of them."""
        assert source is not None
        order = uniform((*z.shape[:-1],), source, z.device)
        everything, order = rows_of_processes(z), rows_of_processes(order)
        return everything.reshape(-1, self.dim)[order.flatten().argsort(stable=True)]


def _last_part(source: Source | None) -> bool:
    """Says whether a process's share of the global batch ends with these rows."""
    if not isinstance(source, Rows):
        return True
    rows = source.stop - source.start
    parts = max(1, source.total // (rows * processes()))
    return source.stop // rows % parts == 0


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """The settings of a `VQVAE`.

    Attributes:
        channels: of the images.
        size: their side in pixels; a multiple of `downsampling`.
        width: channels of the convolutions.
        codes: K, the number of codes.
        code_dim: length of a code.
        downsampling: pixels on the side of the patch that a code stands for.
        blocks: residual blocks of the encoder, and of the decoder.
        codebook: "ema" for running means, "gradient" for the paper's codebook loss.
        commitment: β.
        codebook_decay: γ of the running means.
        restart: a code used less than this share of the fair use starts again; 0 never.
        start: of the codebook, "k-means" on the first batch or "uniform".
        straight_through: let the decoder's gradient pass to the encoder.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    width: int = 64
    codes: int = 512
    code_dim: int = 16
    downsampling: int = 4
    blocks: int = 2
    codebook: Literal["ema", "gradient"] = "ema"
    commitment: float | int = 0.25
    codebook_decay: float = 0.99
    restart: float | int = 0.03
    start: Literal["k-means", "uniform"] = "k-means"
    straight_through: bool = True

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, width=self.width)
        checks.whole(1, code_dim=self.code_dim, downsampling=self.downsampling)
        checks.whole(2, codes=self.codes)
        checks.whole(0, checks.MOST_LAYERS, blocks=self.blocks)
        checks.one_of(["ema", "gradient"], codebook=self.codebook)
        checks.one_of(["k-means", "uniform"], start=self.start)
        checks.number(0, commitment=self.commitment)
        checks.number(0, 1, codebook_decay=self.codebook_decay, restart=self.restart)
        checks.flag(straight_through=self.straight_through)
        if self.size % self.downsampling:
            raise ValueError(
                f"size must be a multiple of downsampling, got {self.size} and {self.downsampling}; "
                "resize the images, or choose another downsampling."
            )


class VQVAE(nn.Module):
    """A vector-quantised autoencoder of square images in [−1, 1]: images to a grid of whole numbers and back.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "vq-vae".
    """

    Config = VQVAEConfig

    def __init__(self, config: VQVAEConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or VQVAEConfig()
        pixels = c.channels * c.downsampling**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(c.downsampling),
            nn.Conv2d(pixels, c.width, 3, padding=1),
            *(ResidualBlock(c.width) for _ in range(c.blocks)),
            nn.SiLU(),
            nn.Conv2d(c.width, c.code_dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(c.code_dim, c.width, 3, padding=1),
            *(ResidualBlock(c.width) for _ in range(c.blocks)),
            nn.SiLU(),
            nn.Conv2d(c.width, pixels, 3, padding=1),
            nn.PixelShuffle(c.downsampling),
        )
        he_initialise(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):  # they begin as the identity
                nn.init.zeros_(module.second.weight)
        self.quantizer = VectorQuantizer(
            c.codes,
            c.code_dim,
            codebook=c.codebook,
            decay=c.codebook_decay,
            restart=c.restart,
            start=c.start,
            straight_through=c.straight_through,
        )

    @property
    def vocabulary(self) -> int:
        """K, the number of codes."""
        return self.config.codes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        side = self.config.size // self.config.downsampling
        return side, side

    @property
    def bits_per_image(self) -> float:
        """The bits of an image's codes if all K are equally likely."""
        return math.prod(self.grid) * math.log2(self.vocabulary)

    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n r k d"]:
        """Returns z_e(x), the vectors before quantisation.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        checks.images(x, self.config.channels, self.config.size, "VQ-VAE")
        return rearrange(self.encoder(x).float(), "n d r k -> n r k d")

    def quantise(self, z: Float[Tensor, "n r k d"], source: Source | None = None) -> Quantised:
        """Returns the nearest codes; in training mode the codebook learns. See `VectorQuantizer`."""
        return self.quantizer(z, source)

    def tokenize(self, x: Float[Tensor, "n c h w"]) -> Int64[Tensor, "n r k"]:
        """Returns the number of the code at each place; nothing is learned. Raises as `encode` does."""
        z = self.encode(x)
        flat = rearrange(z, "n r k d -> (n r k) d")
        return nearest(flat, self.quantizer.codebook).view(z.shape[:-1])

    def decode(self, z_q: Float[Tensor, "n r k d"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of quantised vectors, in about [−1, 1]: the outputs are not clamped."""
        return self.decoder(rearrange(z_q, "n r k d -> n d r k")).float()

    def detokenize(self, tokens: Int64[Tensor, "n r k"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of codes, in [−1, 1].

        Raises:
            ValueError: if the grid is another one, or a token is not in 0 … K − 1.
        """
        if tuple(tokens.shape[1:]) != self.grid:
            rows, columns = self.grid
            raise ValueError(
                f"this VQ-VAE takes tokens in a grid of {rows}×{columns}, got the shape {tuple(tokens.shape)}."
            )
        return self.decode(self.quantizer.lookup(tokens)).clamp(-1, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns the reconstruction, in [−1, 1]; nothing is learned."""
        return self.detokenize(self.tokenize(x))

    def loss(self, x: Float[Tensor, "n c h w"], source: Source | None = None) -> dict[str, Tensor]:
        """Returns the loss and its terms, means over all numbers, and the perplexity of the batch's codes.

        Args:
            x: images in [−1, 1].
            source: of the vectors from which codes start, in training mode.
        """
        quantised = self.quantise(self.encode(x), source)
        reconstruction = F.mse_loss(self.decode(quantised.z_q), x.float())
        codebook, commitment = quantised.losses["codebook"], quantised.losses["commitment"]
        # Eq. 3
        loss = reconstruction + codebook + self.config.commitment * commitment
        return {
            "loss": loss,
            "reconstruction": reconstruction.detach(),
            "codebook": codebook.detach(),
            "commitment": commitment.detach(),
            "perplexity": quantised.perplexity,
        }

    @torch.no_grad()
    def sample(
        self, n: int, source: Source | None = None, *, seed: int | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Decodes codes drawn uniformly and independently: what the decoder alone generates.

        These are no digits: which codes stand beside which, a learned prior has to say (`companion.image_gpt`).

        Args:
            n: how many.
            source: of the codes.
            seed: in place of a source; image i is then a function of the seed and of i alone.

        Raises:
            ValueError: unless exactly one of source and seed is given.
        """
        source = source_of(n, source, seed)
        device = next(self.parameters()).device
        return self.detokenize(integers(self.vocabulary, (n, *self.grid), source, device))
