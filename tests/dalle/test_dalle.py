"""The transformer over captions and images: its masks, its distribution, its draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from companion.dalle.dalle import (
    DALLE,
    DALLEConfig,
    TextToImage,
    attention_mask,
    layer_kinds,
)
from companion.nn.tokenizer import BytePairTokenizer
from companion.randomness import PerImage, initialisation

CAPTIONS = ["a red three", "a blue seven", "a red seven left of a blue three"]
WORDS = BytePairTokenizer.train(CAPTIONS, 300)
TINY = {"width": 8, "layers": 2, "heads": 2, "init_std": 0.4, "text_length": 9}


def dalle(seed=0, **settings_):
    chosen = {"codes": 5, "rows": 3, "columns": 3, "merges": WORDS.flat}
    known = tuple(sorted(WORDS.known_words))
    with initialisation(seed):
        return DALLE(DALLEConfig(**chosen | {"known_words": known} | TINY | settings_)).eval()


def images(n=3, codes=5, seed=1, rows=3, columns=3):
    return torch.randint(codes, (n, rows, columns), generator=torch.Generator().manual_seed(seed))


# --- Masks ------------------------------------------------------------------------------------------------------------


def sees(kind, text, rows, columns, kernel, p, q):
    """Whether position p may see position q, from the picture of each mask."""
    if q > p:
        return False
    if p < text or q < text or kind == "full":
        return True
    i, j = p - text, q - text
    if kind == "row":
        return j >= i - columns
    if kind == "column":
        return i % columns == j % columns
    half = kernel // 2
    window = {i - up * columns + side for up in range(half + 1) for side in range(-half, half + 1)}
    return j in window


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["full", "row", "column", "convolution"]),
    text=st.integers(0, 4),
    rows=st.integers(1, 5),
    columns=st.integers(1, 7),
    kernel=st.sampled_from([1, 3, 5]),
)
def test_masks_are_those_of_the_paper(kind, text, rows, columns, kernel):
    mask = attention_mask(kind, text, rows, columns, kernel)
    length = text + rows * columns
    expected = [
        [sees(kind, text, rows, columns, kernel, p, q) for q in range(length)]
        for p in range(length)
    ]
    assert mask.tolist() == expected


def test_row_attention_reaches_the_place_right_above():
    """The figure of the paper: in a 4×4 grid each image position sees the five last ones, itself among them."""
    mask = attention_mask("row", 6, 4, 4)
    assert mask[6 + 9].nonzero().flatten().tolist() == [*range(6), *range(6 + 5, 6 + 10)]


def test_layers_alternate_as_in_the_paper():
    assert layer_kinds(6, "sparse") == ["row", "column", "row", "row", "row", "convolution"]
    assert layer_kinds(2, "full") == ["full", "full"]


@pytest.mark.parametrize("attention", ["full", "sparse"])
def test_a_token_depends_on_what_comes_before_it_and_on_nothing_else(attention):
    net = dalle(attention=attention, layers=5, kernel=3).double()
    text, grid = net.encode(CAPTIONS[:1]), images(1)
    of_text, of_image = net(text, grid)
    for place in range(9):
        changed = text.clone()
        changed[0, place] = (changed[0, place] + 1) % 256
        a, b = net(changed, grid)
        moved = torch.cat([(a - of_text)[0].abs().amax(1), (b - of_image)[0].abs().amax(1)])
        assert (moved[: place + 1] == 0).all()
        assert (moved[place + 1 :] > 1e-12).all()
    for place in range(9):
        changed = grid.clone().flatten()
        changed[place] = (changed[place] + 1) % 5
        a, b = net(text, changed.view(1, 3, 3))
        assert torch.equal(a, of_text)
        moved = (b - of_image)[0].abs().amax(1) > 1e-12
        assert not moved[: place + 1].any()
        # Five layers of rows and columns reach everything that follows.
        assert moved[place + 1 :].all()


# --- Captions ---------------------------------------------------------------------------------------------------------


def test_every_padded_position_has_a_token_of_its_own():
    net = dalle()
    (row,) = net.encode(["a red three"]).tolist()
    used = len(WORDS.encode("a red three"))
    assert row[:used] == WORDS.encode("a red three")
    assert row[used:] == [WORDS.vocabulary + place for place in range(used, 9)]
    assert net.decode(torch.tensor([row])) == ["a red three"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("  ", "the prompt is empty"),
        ("a red thre", "unknown word 'thre'.*three"),
        ("a red three " * 9, "tokens, but this model reads at most 9; shorten it"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(prompt, message):
    with pytest.raises(ValueError, match=message):
        dalle().check_prompt(prompt)


# --- The distribution -------------------------------------------------------------------------------------------------


def test_the_loss_weighs_text_and_image_one_to_seven():
    net = dalle()
    text, grid = net.encode(CAPTIONS[:2]), images(2)
    of_text, of_image = net(text, grid)
    a = F.nll_loss(of_text.log_softmax(-1).flatten(0, 1), text.flatten())
    b = F.nll_loss(of_image.log_softmax(-1).flatten(0, 1), grid.flatten())
    found = net.loss(text, grid)
    torch.testing.assert_close(found["loss"], (a + 7 * b) / 8)
    torch.testing.assert_close((found["text"], found["image"]), (a.detach(), b.detach()))
    nats = net.nll(text, grid)
    torch.testing.assert_close(nats.text.mean(), 9 * a)
    torch.testing.assert_close(nats.image.mean(), 9 * b)


def test_the_probabilities_of_all_images_of_a_text_sum_to_one():
    net = dalle(codes=2, rows=2, columns=3)
    every = torch.cartesian_prod(*[torch.arange(2)] * 6).view(-1, 2, 3)
    text = net.encode(CAPTIONS[:1]).expand(64, -1)
    with torch.no_grad():
        total = float((-net.nll(text, every).image).exp().sum())
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("attention", ["full", "sparse"])
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 99), known=st.integers(0, 9))
def test_the_cache_changes_nothing(attention, seed, known):
    net = dalle(attention=attention, kernel=3, layers=3)
    text, prefix = net.encode(CAPTIONS[:2]), images(2, seed=seed).flatten(1)[:, :known]
    cached, naive = (
        net.generate(text, seed=seed, prefix=prefix, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, naive)
    assert torch.equal(cached.flatten(1)[:, :known], prefix)


def test_images_are_drawn_as_often_as_their_probability_says():
    net = dalle(codes=2, rows=2, columns=2)
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 2, 2)
    text = net.encode(CAPTIONS[:1])
    with torch.no_grad():
        expected = (-net.nll(text.expand(16, -1), every).image).exp()
    drawn = net.generate(text.expand(20_000, -1), torch.Generator().manual_seed(0)).flatten(1)
    counts = (drawn @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16) / 20_000
    assert expected.max() / expected.min() > 3, "too uniform to test anything"
    torch.testing.assert_close(counts, expected, atol=0.012, rtol=0)


def test_texts_are_drawn_from_the_model_too():
    net = dalle(text_length=1, merges=(), known_words=())
    drawn = net.generate_text(20_000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = net(torch.zeros(1, 1).long(), images(1))[0][0, 0].softmax(0)
    counts = drawn.flatten().bincount(minlength=len(p)) / 20_000
    assert (counts - p).abs().max() < 0.012
    longer = dalle().generate_text(3, seed=0)
    assert longer.shape == (3, 9)
    assert torch.equal(longer[:1], dalle().generate_text(1, seed=0))


# --- Text to image ----------------------------------------------------------------------------------------------------


class Tiles(nn.Module):
    """Codes are the brightness of a tile."""

    vocabulary, grid = 5, (3, 3)

    def tokenize(self, x):
        return ((x[:, 0] + 1) * 2).round().long()

    def detokenize(self, grid):
        return (grid.float() / 2 - 1)[:, None]


class Brightness(nn.Module):
    """Whatever the caption, the brightest image is best."""

    def scores(self, x, captions):
        return x.mean(dim=(1, 2, 3))[:, None].expand(-1, len(captions))


def test_an_image_of_a_caption_is_a_function_of_the_seed_and_its_number():
    both = TextToImage(dalle(), Tiles(), Brightness())
    for rerank in (1, 4):
        whole = both.draw(CAPTIONS, seed=5, rerank=rerank)
        parts = [
            both.draw(CAPTIONS[i : i + 1], PerImage(5, i, i + 1), rerank=rerank) for i in range(3)
        ]
        assert torch.equal(whole, torch.cat(parts))
    assert both.sample(2, seed=0).shape == (2, 1, 3, 3)


def test_reranking_keeps_the_draw_that_the_judge_likes_best():
    both = TextToImage(dalle(), Tiles(), Brightness())
    source = torch.Generator().manual_seed(3)
    best = both.draw(CAPTIONS[:2], source, rerank=6)
    u = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(3))
    text = both.model.encode(CAPTIONS[:2]).repeat_interleave(6, dim=0)
    every = Tiles().detokenize(both.model.draw(text, u.flatten(0, 1))).view(2, 6, 9).mean(-1)
    torch.testing.assert_close(best.mean(dim=(1, 2, 3)), every.amax(1))


def test_many_draws_are_made_in_parts(monkeypatch):
    both = TextToImage(dalle(), Tiles(), Brightness())
    whole = both.draw(CAPTIONS, seed=5, rerank=4)
    monkeypatch.setattr("companion.dalle.dalle.AT_ONCE", 5)
    torch.testing.assert_close(both.draw(CAPTIONS, seed=5, rerank=4), whole)
    with pytest.raises(ValueError, match="rerank must be a whole number from 1 to 10,000"):
        both.draw(CAPTIONS, seed=5, rerank=10_001)


def test_it_learns_which_image_belongs_to_which_caption():
    net = dalle(width=16).train()
    text, grid = net.encode(CAPTIONS[:2]), images(2)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(200):
        loss = net.loss(text, grid)
        optimiser.zero_grad()
        loss["loss"].backward()
        optimiser.step()
    drawn = TextToImage(net, Tiles()).draw(CAPTIONS[:2], seed=0, temperature=0)
    assert torch.equal(Tiles().tokenize(drawn), grid)
    shown = net.decode(net.generate_text(40, seed=0))
    assert sum(caption in CAPTIONS[:2] for caption in shown) >= 36
    assert set(CAPTIONS[:2]) <= set(shown)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"DALLE is for 5 codes in a grid of 2×3, but .* has 5 in 3×3"
    ):
        TextToImage(dalle(rows=2), Tiles())
    with pytest.raises(TypeError, match="a Linear does not turn images into codes"):
        TextToImage(dalle(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="rerank=4 needs a judge"):
        TextToImage(dalle(), Tiles()).draw(CAPTIONS, seed=0, rerank=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": 4}, "kernel must be odd"),
        ({"width": 9}, "width 9 is not a multiple of heads 2"),
        ({"text_length": 0}, "text_length must be a whole number of at least 1"),
        ({"codes": 0}, "codes must be a whole number from 1"),
        ({"init_std": math.nan}, "init_std must be a finite number"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DALLEConfig(**TINY | change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: m(t[:, :4], images(3)), r"texts have the shape \(3, 9\)"),
        (lambda m, t: m(t - 300, images(3)), r"text tokens lie in \[-\d+"),
        (lambda m, t: m(t, images(3) + 3), r"tokens lie in \[3, 7\], outside \[0, 4\]"),
        (lambda m, t: m(t, images(3, columns=2)), "takes grids of 3×3 tokens"),
        (lambda m, t: m.generate(t, seed=0, top_p=2.0), "top_p must be"),
        (lambda m, t: m.generate(t, seed=0, prefix=torch.zeros(3, 10).long()), "at most 9 tokens"),
        (lambda m, t: m.encode([]), "there is no prompt"),
    ],
)
def test_bad_input_is_named(call, message):
    net = dalle()
    with pytest.raises(ValueError, match=message):
        call(net, net.encode(CAPTIONS))
