"""PixelCNN: causality by Jacobians, blind spots, likelihoods by enumeration, drawing with and without buffers."""

import itertools
import math

import pytest
import torch

from companion.distributions import binarise
from companion.pixelcnn import PixelCNN, PixelCNNConfig
from companion.randomness import PerImage, initialisation

VARIANTS = {
    "gated": {},
    "plain": {"gated": False},
    "gated, dilated": {"dilation_cycle": 2},
    "plain, dilated": {"gated": False, "dilation_cycle": 2},
    "gated, of classes": {"classes": 3},
    "plain, of classes": {"gated": False, "classes": 3},
    "gated, colour": {"channels": 3, "width": 24, "levels": 3},
    "plain, colour": {"channels": 3, "width": 24, "levels": 3, "gated": False},
    "mixture": {"likelihood": "logistic-mixture", "levels": 256, "mixtures": 3},
    "mixture, colour": {
        "channels": 3,
        "likelihood": "logistic-mixture",
        "levels": 256,
        "mixtures": 3,
    },
}
every_variant = pytest.mark.parametrize("variant", list(VARIANTS))


def network(variant: str = "gated", **settings) -> PixelCNN:
    small = {"size": 5, "width": 8, "layers": 2, "dilation_cycle": 1}
    with initialisation(0):
        model = PixelCNN(PixelCNNConfig(**(small | VARIANTS[variant] | settings))).eval()
        # Places and offsets that are not zero, so that a lost one shows.
        for parameter in model.parameters():
            if parameter.ndim < 2 or parameter is model.row or parameter is model.column:
                torch.nn.init.normal_(parameter, 0.0, 0.5)
    return model


def labels_of(model: PixelCNN, n: int) -> torch.Tensor | None:
    return torch.arange(n) % model.config.classes if model.config.classes else None


@every_variant
def test_no_number_sees_itself_or_a_later_one(variant):
    model = network(variant).double()
    c = model.config
    x = torch.rand(1, c.channels, 5, 5, dtype=torch.float64) * 2 - 1
    labels = labels_of(model, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, labels)[0], x)[:, :, :, 0]
    # Parameters, row and column of the output; channel, row and column of the input.
    for k, i, j in itertools.product(range(c.parameters), range(5), range(5)):
        slope = jacobian[k, i, j]
        channel = k // c.levels if c.likelihood == "categorical" else 0
        earlier = torch.zeros(c.channels, 5, 5, dtype=torch.bool)
        earlier[:, :i] = True
        earlier[:, i, :j] = True
        earlier[:channel, i, j] = True
        assert not slope[~earlier].any(), (k, i, j)
    for i, j in itertools.product(range(5), range(5)):
        assert bool(jacobian[:, i, j].any()) == bool(i or j or c.groups > 1), (i, j)
    if c.channels == 3 and c.likelihood == "categorical":
        # Green sees red, blue sees both: of the same pixel.
        for later, earlier in [(1, 0), (2, 0), (2, 1)]:
            part = jacobian[later * c.levels : (later + 1) * c.levels, 2, 2, earlier, 2, 2]
            assert part.any()


def test_the_plain_network_has_a_blind_spot_and_the_gated_one_has_none():
    sizes = {"size": 11, "layers": 8, "first_kernel": 3, "width": 8}
    gated = network("gated", **sizes).receptive_field(8, 5)[0]
    plain = network("plain", **sizes).receptive_field(8, 5)[0]
    before = torch.zeros(11, 11, dtype=torch.bool)
    before[:8] = True
    before[8, :5] = True
    assert gated[before].all()
    assert not gated[~before].any()
    assert not plain[~before].any()
    # Right of the pixel each row up is worth one column: what lies beyond the diagonal stays unseen.
    for i, j in itertools.product(range(8), range(11)):
        assert bool(plain[i, j]) == (j - 5 <= 8 - i), (i, j)


@every_variant
def test_buffers_change_the_time_and_not_the_images(variant):
    # Six rows: as many as the kernels of the first layer and of a block dilated by 4 can tell apart.
    model = network(variant, size=6, layers=3)
    quick = model.sample(3, seed=4)
    assert torch.equal(quick, model.sample(3, seed=4, cached=False))
    assert quick.std() > 0.1
    assert torch.equal(model.sample(2, seed=4), quick[:2])
    *_, last = model.draw_rows(3, seed=4)
    assert torch.equal(last, quick)
    means = model.sample(3, seed=4, means=True)
    torch.testing.assert_close(
        means, model.sample(3, seed=4, means=True, cached=False), rtol=0, atol=1e-4
    )
    assert means.abs().max() <= 1
    # Drawn values are levels.
    assert torch.equal(model.observe(quick), quick)


@pytest.mark.parametrize("gated", [True, False])
def test_all_images_together_have_probability_one(gated):
    model = network("gated", size=3, gated=gated)
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=9))).reshape(-1, 1, 3, 3)
    with torch.no_grad():
        p = (-model.nll(every).double()).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    # And images are drawn with these probabilities: χ² over the images of the upper row.
    drawn = model.sample(4000, torch.Generator().manual_seed(0))
    code = ((drawn[:, 0, 0] > 0) * torch.tensor([4, 2, 1])).sum(1)
    expected = 4000 * p.reshape(8, 64).sum(1)
    chi2 = float(((code.bincount(minlength=8) - expected).square() / expected).sum())
    assert chi2 < 24.3  # 7 degrees of freedom, 1 in 1,000


def test_colours_together_have_probability_one():
    model = network("gated, colour", size=1, levels=3)
    every = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=3))).reshape(-1, 3, 1, 1)
    with torch.no_grad():
        p = (-model.nll(every).double()).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)


def test_a_likelihood_is_the_product_of_the_pixels():
    model = network()
    grey = torch.rand(4, 1, 5, 5) * 2 - 1
    x = binarise(grey, PerImage(3, 0, 4))
    with torch.no_grad():
        logits = model(x)
        white = logits.softmax(dim=1)[:, 1:]
        by_hand = torch.where(x > 0, white, 1 - white).log().flatten(1).sum(dim=1)
        torch.testing.assert_close(model.nll(grey, PerImage(3, 0, 4)), -by_hand)
        found = model.loss(grey, PerImage(3, 0, 4))
    assert float(found["nats"]) == pytest.approx(-float(by_hand.mean()), rel=1e-5)
    assert float(found["loss"]) == pytest.approx(-float(by_hand.mean()) / 25, rel=1e-5)


def test_labels_matter():
    for variant in ("gated, of classes", "plain, of classes"):
        model = network(variant)
        x = torch.ones(1, 1, 5, 5)
        a, b = (model.nll(x, None, torch.tensor([i])) for i in (0, 1))
        assert not torch.isclose(a, b)
        zero = model.sample(4, seed=0, labels=torch.zeros(4, dtype=torch.int64), means=True)
        two = model.sample(4, seed=0, labels=torch.full((4,), 2), means=True)
        assert not torch.allclose(zero, two)


@every_variant
def test_completions_keep_what_is_known(variant):
    model = network(variant)
    c, labels = model.config, labels_of(model, 3)
    whole = model.sample(3, seed=1, labels=labels)
    again = model.complete(whole, 2, seed=1, labels=labels)
    assert torch.equal(again[:, :, :2], whole[:, :, :2])
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[1, 3] = mask[4, 4] = True
    some = model.complete(whole, mask, seed=8, labels=labels)
    assert torch.equal(some[:, :, mask], whole[:, :, mask])
    slow = model.complete(whole, mask, seed=8, labels=labels, cached=False)
    assert torch.equal(some, slow)
    assert torch.equal(model.complete(whole, 5, seed=2, labels=labels), whole)
    assert c.channels == some.shape[1]


def test_partial_images_grow_row_by_row():
    model = network()
    final = model.sample(2, seed=0)
    for row, partial in enumerate(model.draw_rows(2, seed=0)):
        assert torch.equal(partial[:, :, : row + 1], final[:, :, : row + 1])
        assert partial[:, :, row + 1 :].eq(-1).all()


@every_variant
def test_completing_a_draw_with_its_own_numbers_gives_that_draw(variant):
    model = network(variant, size=5, layers=1)
    labels = torch.tensor([1, 0]) if model.config.classes else None
    drawn = model.sample(2, seed=3, labels=labels)
    assert torch.equal(model.complete(drawn, 2, seed=3, labels=labels), drawn)
    assert not torch.equal(model.complete(drawn, 2, seed=4, labels=labels), drawn)


def test_a_few_steps_learn_a_rule():
    """Of stripes whose first pixel says everything, only that pixel's bit remains to be paid."""
    model = network(layers=1).train()
    bits = torch.tensor([1.0, -1.0]).repeat(8)
    x = bits[:, None, None, None].expand(16, 1, 5, 5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        model.loss(x)["loss"].backward()
        optimiser.step()
    assert math.log(2) - 1e-3 < float(model.nll(x).mean().detach()) < 1.0


# --- Bad input -----------------------------------------------------------------------------------------------------


def test_wrong_images_are_refused(afresh):
    afresh("""
import torch
from companion.pixelcnn import PixelCNN, PixelCNNConfig
model = PixelCNN(PixelCNNConfig(size=6, width=4, layers=1))
calls = (model, model.nll, lambda x: model.complete(x, 2, seed=0))
for call in calls:
    for x, kind in [(torch.zeros(2, 1, 6, 6, dtype=torch.uint8), TypeError), (torch.zeros(2, 1, 6, 5), ValueError),
                    (torch.zeros(2, 3, 6, 6), ValueError), (torch.zeros(1, 6, 6), ValueError)]:
        try:
            call(x)
            print("taken", tuple(x.shape))
        except kind as error:
            assert "PixelCNN" in str(error), error
black = -torch.ones(2, 1, 6, 6)
for known, kind, text in [(7, ValueError, "known"), (-1, ValueError, "known"), (True, ValueError, "known"),
                          (torch.ones(6, 6), TypeError, "True"), (torch.ones(5, 6) > 0, ValueError, "(6, 6)")]:
    try:
        model.complete(black, known, seed=0)
        print("taken", known)
    except kind as error:
        assert text in str(error), error
""")


def test_wrong_labels_and_missing_sources_are_refused():
    free, told = network(), network("gated, of classes")
    x = torch.ones(2, 1, 5, 5)
    with pytest.raises(ValueError, match="3 classes: give each image's label"):
        told.nll(x)
    with pytest.raises(ValueError, match="without classes"):
        free.nll(x, None, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="from 0 to 2"):
        told.nll(x, None, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="give a source"):
        free.nll(x * 0.5)
    with pytest.raises(ValueError, match="either seed"):
        free.sample(2)
    with pytest.raises(ValueError, match="row"):
        free.receptive_field(5, 0)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"kernel": 4}, "kernel"),
        ({"first_kernel": 6}, "first_kernel"),
        ({"channels": 3, "width": 8}, "width"),
        ({"gated": False, "width": 7}, "width"),
        ({"likelihood": "logistic-mixture"}, "levels"),
        ({"levels": 1}, "levels"),
        ({"dropout": 1.0}, "dropout"),
        ({"layers": 0}, "layers"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, name):
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        PixelCNNConfig(**settings)
