"""The masked autoencoder: what it sees, what it hides, what its loss counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.masked_autoencoder import (
    MaskedAutoencoder,
    MaskedAutoencoderConfig,
    gather,
    hidden_count,
    patchify,
    positions,
    random_masking,
    unpatchify,
)
from companion.randomness import Rows, initialisation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**changes):
    sizes = {
        "size": 16,
        "width": 16,
        "layers": 2,
        "decoder_width": 16,
        "decoder_layers": 1,
        "heads": 2,
    }
    with initialisation(0):
        return MaskedAutoencoder(MaskedAutoencoderConfig(**sizes | changes)).eval()


def images(n=3, channels=1, size=16, seed=1):
    return torch.rand(n, channels, size, size, generator=seeded(seed)) * 2 - 1


@settings(deadline=None, max_examples=20)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 3),
    side=st.integers(1, 4),
    patch=st.integers(1, 5),
)
def test_unpatchify_inverts_patchify(n, channels, side, patch):
    x = images(n, channels, side * patch)
    patches = patchify(x, patch)
    assert patches.shape == (n, side * side, channels * patch * patch)
    torch.testing.assert_close(unpatchify(patches, patch, channels), x, rtol=0, atol=0)


def test_patches_run_row_by_row():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15.0]])
    torch.testing.assert_close(patchify(x, 2)[0], expected)


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(1, 6),
    patches=st.integers(1, 64),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_every_image_hides_the_exact_share_and_the_bookkeeping_inverts(n, patches, share, seed):
    masking = random_masking(n, patches, share, seeded(seed))
    hidden = hidden_count(patches, share)
    assert masking.visible.shape == (n, patches - hidden)
    assert (masking.hidden.sum(dim=1) == hidden).all()
    # No visible patch is marked hidden.
    assert not masking.hidden.gather(1, masking.visible).any()
    # The order (visible, hidden) is a permutation and `restore` its inverse: visible patch j stands at place j.
    places = torch.arange(patches - hidden).expand(n, -1)
    assert (masking.restore.gather(1, masking.visible) == places).all()
    assert (masking.restore.sort(dim=1).values == torch.arange(patches)).all()


def test_every_patch_is_hidden_equally_often():
    masking = random_masking(20_000, 16, 0.75, seeded())
    often = masking.hidden.float().mean(dim=0)
    # Binomial: one standard error is sqrt(0.75 · 0.25 / 20,000) = 0.0031.
    assert (often - 0.75).abs().max() < 5 * 0.0031


def test_the_masks_of_a_batch_do_not_depend_on_how_it_is_split():
    whole = random_masking(6, 9, 0.5, seeded())
    parts = [random_masking(3, 9, 0.5, Rows(seeded(), s, s + 3, 6)) for s in (0, 3)]
    assert torch.equal(whole.visible, torch.cat([p.visible for p in parts]))
    assert torch.equal(whole.restore, torch.cat([p.restore for p in parts]))


@pytest.mark.parametrize("share", [0.25, 0.75, 0.9])
def test_nothing_that_is_predicted_depends_on_hidden_pixels(share):
    model, x = small(), images()
    masking = model.masking(3, seeded(), share)
    patches = patchify(x, 4)
    noise = torch.rand(patches.shape, generator=seeded(9))
    other = unpatchify(torch.where(masking.hidden[..., None], noise, patches), 4, 1)
    assert not torch.equal(x, other)
    with torch.no_grad():
        assert torch.equal(model.encode(x, masking.visible), model.encode(other, masking.visible))
        assert torch.equal(model(x, masking), model(other, masking))


def test_every_prediction_depends_on_every_visible_patch():
    model, x = small(), images(1).requires_grad_()
    masking = model.masking(1, seeded())
    hidden = masking.hidden[0].nonzero()[0, 0]
    (gradient,) = torch.autograd.grad(model(x, masking)[0, hidden].sum(), x)
    touched = patchify(gradient, 4)[0].abs().sum(dim=1) > 0
    assert torch.equal(touched, ~masking.hidden[0])


def test_the_order_of_the_visible_patches_does_not_matter():
    model, x = small().double(), images().double()
    masking = model.masking(3, seeded(), 0.5)
    order = torch.randperm(8, generator=seeded(2))
    visible = masking.visible[:, order]
    full = torch.cat([visible, (masking.hidden.long()).argsort(dim=1, stable=True)[:, 8:]], dim=1)
    torch.testing.assert_close(
        model.decode(model.encode(x, visible), full.argsort(dim=1)),
        model(x, masking),
    )


def test_the_loss_counts_hidden_patches_only():
    model, x = small(), images()
    with torch.no_grad():
        loss = model.loss(x, seeded(5))["loss"]
        masking = model.masking(3, seeded(5))
        error = (model(x, masking) - patchify(x, 4)).square().mean(dim=-1)
        expected = [error[i, j] for i in range(3) for j in range(16) if masking.hidden[i, j]]
    assert len(expected) == 3 * 12
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_with_nothing_hidden_the_loss_counts_all_patches():
    model, x = small(mask_ratio=0.0), images()
    with torch.no_grad():
        error = model(x, model.masking(3, seeded())) - patchify(x, 4)
        torch.testing.assert_close(model.loss(x, seeded())["loss"], error.square().mean())


def test_reconstructions_keep_the_visible_patches():
    for model in (small(), small(normalise_targets=True)):
        x = images()
        masking = model.masking(3, seeded())
        kept, truth = patchify(model.reconstruct(x, masking), 4), patchify(x, 4)
        assert torch.equal(kept[~masking.hidden], truth[~masking.hidden])
        assert not torch.allclose(kept[masking.hidden], truth[masking.hidden])


def test_normalised_targets_have_mean_0_and_variance_1():
    targets = small(normalise_targets=True).targets(images())
    torch.testing.assert_close(targets.mean(-1), torch.zeros(3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(-1), torch.ones(3, 16), atol=1e-3, rtol=0)


def test_positions_are_distinct_and_their_products_depend_on_the_offset_alone():
    code = positions(7, 32).double()
    assert torch.pdist(code).min() > 0.1
    products = (code @ code.T).reshape(7, 7, 7, 7)
    torch.testing.assert_close(products[1, 2, 3, 5], products[2, 1, 4, 4])
    with pytest.raises(ValueError, match="multiple of 4"):
        positions(7, 30)


def test_positions_are_trained_only_on_request():
    names = {name for name, p in small().named_parameters() if p.requires_grad}
    assert "encoder_positions" not in names
    learned = {name for name, p in small(learned_positions=True).named_parameters()}
    assert {"encoder_positions", "decoder_positions"} <= learned
    # Fixed or learned, they are stored, so that a checkpoint is complete.
    assert "encoder_positions" in small().state_dict()


def test_features_see_the_whole_image():
    x = images(1).requires_grad_()
    (gradient,) = torch.autograd.grad(small().features(x).sum(), x)
    assert (patchify(gradient, 4).abs().sum(-1) > 0).all()


def test_gather_picks_each_images_own_tokens():
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    places = torch.tensor([[2], [0]])
    torch.testing.assert_close(gather(tokens, places), torch.tensor([[[4.0, 5.0]], [[6.0, 7.0]]]))


def test_it_overfits_one_batch():
    model = small(mask_ratio=0.5).train()
    x = images(2)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(250):
        loss = model.loss(x, seeded(0))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_mixed_precision_gives_a_float32_loss():
    with torch.autocast("cpu", torch.bfloat16):
        loss = small().loss(images(), seeded())["loss"]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="patch is 5 and size 16: such patches do not tile"):
        small(patch=5)
    with pytest.raises(ValueError, match=r"mask_ratio must be .* below 1, got 1\.0"):
        small(mask_ratio=1.0)
