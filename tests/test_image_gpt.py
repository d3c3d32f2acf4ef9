"""The transformer over grids of tokens: causal, normalised, drawn as it says; its pixels exact."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.image_gpt import (
    ImageGPT,
    ImageGPTConfig,
    PixelGPT,
    PixelGPTConfig,
    TwoStage,
)
from companion.randomness import PerImage, initialisation

TINY = {"width": 8, "layers": 2, "heads": 2, "init_std": 0.4}


def gpt(seed=0, **settings_):
    config = ImageGPTConfig(**{"vocabulary": 5, "rows": 3, "columns": 4} | TINY | settings_)
    with initialisation(seed):
        return ImageGPT(config).eval()


def pixels(seed=0, **settings_):
    with initialisation(seed):
        return PixelGPT(PixelGPTConfig(**{"size": 4} | TINY | settings_)).eval()


def tokens(n=3, rows=3, columns=4, vocabulary=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (n, rows, columns), generator=generator)


both = pytest.mark.parametrize("neighbours", [True, False])


@both
def test_every_token_depends_on_those_before_it_and_on_no_other(neighbours):
    """Replaces each token in turn: exactly the logits after it may move, and they all do."""
    net, grid = gpt(neighbours=neighbours).double(), tokens(1)
    before = net(grid)[0]
    for place in range(12):
        changed = grid.clone().flatten()
        changed[place] = (changed[place] + 1) % 5
        moved = (net(changed.view(1, 3, 4))[0] - before).abs().amax(1) > 1e-12
        assert not moved[: place + 1].any()
        assert moved[place + 1 :].all()


@both
def test_the_probabilities_of_all_grids_sum_to_one(neighbours):
    net = gpt(neighbours=neighbours, vocabulary=2, rows=2, columns=3)
    every = torch.cartesian_prod(*[torch.arange(2)] * 6).view(-1, 2, 3)
    assert float((-net.nll(every)).exp().sum().detach()) == pytest.approx(1, abs=1e-5)
    total = net.log_probs(every).sum(1)
    torch.testing.assert_close(total, -net.nll(every))


def test_black_and_white_images_have_probabilities_that_sum_to_one():
    """The likelihood is that of the pixels: over all 2^16 images of 4×4 it is a distribution."""
    net = pixels()
    every = 2.0 * torch.cartesian_prod(*[torch.arange(2)] * 16).view(-1, 1, 4, 4) - 1
    with torch.no_grad():
        nats = torch.cat([net.nll(part, torch.Generator()) for part in every.split(8192)])
    assert float((-nats.double()).exp().sum()) == pytest.approx(1, abs=1e-4)


@both
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 99), known=st.integers(0, 12), top_p=st.none() | st.floats(0.3, 1.0))
def test_the_cache_changes_nothing(neighbours, seed, known, top_p):
    net = gpt(neighbours=neighbours)
    prefix = tokens(seed=seed).flatten(1)[:, :known]
    cached, naive = (
        net.generate(3, seed=seed, prefix=prefix, top_p=top_p, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(cached, naive)
    assert torch.equal(cached.flatten(1)[:, :known], prefix)


@both
def test_cached_logits_equal_those_of_the_full_pass(neighbours):
    from companion.image_gpt import _Canvas

    net, grid = gpt(neighbours=neighbours), tokens()
    flat, full = grid.flatten(1), net(grid)
    for known in (0, 1, 5):
        canvas = _Canvas(net, flat[:, :known], None, None, use_cache=True)
        torch.testing.assert_close(canvas.logits(), full[:, known], atol=1e-5, rtol=1e-5)
        for place in range(known, 11):
            canvas.flat[:, place] = flat[:, place]
            found = canvas.advance(flat[:, place])
            torch.testing.assert_close(found, full[:, place + 1], atol=1e-5, rtol=1e-5)


def test_grids_are_drawn_as_often_as_their_probability_says():
    net = gpt(vocabulary=2, rows=2, columns=2)
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 2, 2)
    expected = (-net.nll(every)).exp()
    drawn = net.generate(20_000, torch.Generator().manual_seed(0)).flatten(1)
    counts = (drawn @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16) / 20_000
    assert expected.max() / expected.min() > 3, "too uniform to test anything"
    torch.testing.assert_close(counts, expected.detach(), atol=0.012, rtol=0)


def test_an_image_of_a_seed_is_the_same_in_any_batch():
    net = gpt(classes=3)
    labels = torch.arange(6) % 3
    whole = net.generate(6, seed=4, labels=labels)
    parts = [
        net.generate(2, PerImage(4, start, start + 2), labels=labels[start : start + 2])
        for start in (0, 2, 4)
    ]
    assert torch.equal(whole, torch.cat(parts))
    drawn = pixels(classes=3)
    torch.testing.assert_close(drawn.sample(5, seed=1)[:2], drawn.sample(2, seed=1))


def test_a_longer_prefix_of_a_draw_leads_to_the_same_draw():
    net = gpt()
    whole = net.generate(3, seed=2)
    again = net.generate(3, seed=2, prefix=whole.flatten(1)[:, :7])
    assert torch.equal(whole, again)


def test_labels_change_the_distribution():
    net, grid = gpt(classes=3), tokens(1)
    nats = [float(net.nll(grid, torch.tensor([label])).detach()) for label in range(3)]
    assert len({round(value, 4) for value in nats}) == 3


def test_generated_tokens_may_be_trained_on():
    net = gpt()
    drawn = net.generate(2, seed=0)
    net.nll(drawn).mean().backward()
    assert not drawn.is_inference()


# --- Pixels -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    patch=st.sampled_from([1, 2]),
    levels=st.sampled_from([2, 3, 16]),
    channels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_tokens_and_images_are_inverse(patch, levels, channels, seed):
    if levels ** (channels * patch**2) > 65_536:
        return
    net = pixels(patch=patch, levels=levels, channels=channels)
    assert net.vocabulary == levels ** (channels * patch**2)
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(net.vocabulary, (3, *net.grid), generator=generator)
    assert torch.equal(net.tokenize(net.detokenize(grid)), grid)
    values = net.detokenize(grid)
    assert set(((values + 1) * (levels - 1) / 2).round().unique().int().tolist()) <= set(
        range(levels)
    )
    torch.testing.assert_close(net.observe(values, generator), values)


def test_bytes_keep_their_values():
    net = pixels(patch=1, levels=256)
    x = (torch.arange(256).view(16, 1, 4, 4) / 127.5) - 1
    assert net.tokenize(x).flatten().tolist() == list(range(256))
    torch.testing.assert_close(net.detokenize(net.tokenize(x)), x)


def test_a_token_is_a_block_of_neighbouring_pixels():
    net = pixels()
    x = -torch.ones(1, 1, 4, 4)
    x[0, 0, :2, 2:] = 1
    assert net.tokenize(x).tolist() == [[[0, 15], [0, 0]]]
    x[0, 0, 0, 2] = -1  # the block's first pixel is the last digit of its number
    assert net.tokenize(x).tolist() == [[[0, 14], [0, 0]]]


def test_black_and_white_is_drawn_anew_each_time():
    net = pixels(size=28)
    grey = torch.zeros(64, 1, 28, 28)
    seen = net.observe(grey, torch.Generator().manual_seed(0))
    assert set(seen.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(seen.mean())) < 0.02
    assert not torch.equal(seen, net.observe(grey, torch.Generator().manual_seed(1)))


def test_the_loss_is_the_nats_of_a_number():
    net = pixels()
    x = net.sample(8, seed=0)
    found = net.loss(x, torch.Generator())
    nats = net.nll(x, torch.Generator()).mean().detach()
    assert float(found["nats"]) == pytest.approx(float(nats))
    assert float(found["loss"].detach()) == pytest.approx(float(nats) / 16)


def test_completion_keeps_what_is_known():
    net = pixels()
    x = net.sample(5, seed=0)
    for rows in (0, 2, 4):
        done = net.complete(x, rows, seed=1)
        assert torch.equal(done[:, :, :rows], x[:, :, :rows])
    assert torch.equal(net.complete(x, 2, seed=1), net.complete(x, 2, seed=1))
    assert not torch.equal(net.complete(x, 2, seed=1), net.complete(x, 2, seed=2))
    # With what was drawn from the same numbers known, the rest is what was drawn.
    assert torch.equal(net.complete(net.sample(5, seed=3), 2, seed=3), net.sample(5, seed=3))


def test_it_learns_two_images_by_heart():
    net = pixels(width=16).train()
    x = torch.ones(2, 1, 4, 4)
    x[0, 0, ::2], x[1, 0, :, 1:] = -1, -1
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(100):
        loss = net.loss(x, torch.Generator())
        optimiser.zero_grad()
        loss["loss"].backward()
        optimiser.step()
    assert float(loss["nats"]) == pytest.approx(math.log(2), abs=0.1)
    drawn = {tuple(image.flatten().tolist()) for image in net.sample(20, seed=0)}
    assert drawn == {tuple(image.flatten().tolist()) for image in x}


# --- Two stages -------------------------------------------------------------------------------------------------------


class Tiles(nn.Module):
    """A tokenizer whose codes are known: the brightness of a quarter of the image."""

    vocabulary, grid = 5, (2, 2)

    def tokenize(self, x):
        means = nn.functional.avg_pool2d(x, x.shape[-1] // 2)[:, 0]
        return ((means + 1) * 2).round().long()

    def detokenize(self, grid):
        return (grid.float() / 2 - 1)[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_two_stages_score_and_draw_by_their_codes():
    prior = gpt(rows=2, columns=2)
    both_ = TwoStage(prior, Tiles())
    x = Tiles().detokenize(tokens(6, 2, 2))
    torch.testing.assert_close(both_.nll(x), prior.nll(tokens(6, 2, 2)))
    drawn = both_.sample(4, seed=3)
    assert torch.equal(Tiles().tokenize(drawn), prior.generate(4, seed=3))


class Borderline(nn.Module):
    """A tokenizer whose codes depend on the last digits of a matrix product."""

    vocabulary, grid = 7, (2, 2)

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(64, 28, bias=False)

    def tokenize(self, x):
        return self.project(x.flatten(1)).unflatten(1, (2, 2, 7)).argmax(-1)

    def detokenize(self, grid):
        return grid[:, None].float()


def test_codes_are_the_same_whatever_precision_the_rest_has():
    """Those that a prior is trained on, under bfloat16, and those that it is measured on."""
    with initialisation(0):
        both_ = TwoStage(gpt(vocabulary=7, rows=2, columns=2), Borderline())
    x = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = both_.codes(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(both_.tokenizer.tokenize(x), plain), "too far from any border"
        assert torch.equal(both_.codes(x), plain)


def test_a_prior_of_other_codes_is_refused():
    with pytest.raises(
        ValueError, match=r"ImageGPT is for 5 codes in a grid of 3×4, but .* has 5 in 2×2"
    ):
        TwoStage(gpt(), Tiles())
    with pytest.raises(TypeError, match="a Linear does not turn images into codes"):
        TwoStage(gpt(), nn.Linear(2, 2))


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageGPTConfig(vocabulary=0), "vocabulary must be a whole number from 1"),
        (lambda: ImageGPTConfig(width=10, heads=4), "width 10 is not a multiple of heads 4"),
        (lambda: PixelGPTConfig(size=7), "size must be a multiple of patch 2, got 7"),
        (lambda: PixelGPTConfig(levels=256), r"blocks? of 2×2 pixels .* more than 65,536 things"),
        (lambda: PixelGPTConfig(levels=1), "levels must be a whole number from 2 to 256, got 1"),
    ],
)
def test_settings_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpt()(tokens(columns=3)), r"grids of 3×4 tokens, got the shape \(3, 3, 3\)"),
        (lambda: gpt()(tokens() + 4), r"tokens lie in \[4, 8\], outside \[0, 4\]"),
        (lambda: gpt()(tokens(), torch.zeros(3).long()), "built without classes"),
        (lambda: gpt(classes=2)(tokens()), "has 2 classes: give each image's label"),
        (lambda: gpt(classes=2)(tokens(), torch.tensor([0, 1, 2])), r"labels lie in \[0, 2\]"),
        (lambda: gpt().generate(2), "give either seed=…"),
        (lambda: gpt().generate(2, seed=0, top_p=1.5), "top_p must be .* got 1.5"),
        (
            lambda: gpt().generate(1, seed=0, prefix=torch.zeros(1, 13).long()),
            r"at most 12 tokens \(the grid is 3×4\), got the shape \(1, 13\)",
        ),
        (
            lambda: gpt().generate(1, seed=0, prefix=torch.tensor([[0, 5]])),
            r"the tokens of the prefix lie in \[0, 5\], outside \[0, 4\]",
        ),
        (lambda: pixels().complete(torch.zeros(1, 1, 4, 4), 3, seed=0), "rows must be a multiple"),
        (
            lambda: pixels().complete(torch.zeros(1, 1, 4, 4), 6, seed=0),
            "rows must be .* from 0 to",
        ),
        (lambda: pixels().tokenize(torch.zeros(1, 3, 4, 4)), r"images of shape \(1, 4, 4\)"),
        (lambda: pixels().nll(torch.zeros(1, 1, 8, 8), torch.Generator()), r"shape \(1, 4, 4\)"),
        (lambda: pixels().detokenize(torch.full((1, 2, 2), 16)), r"lie in \[16, 16\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
