"""Randomness that does not depend on how a batch is split."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from companion.randomness import (
    PerImage,
    Rows,
    derive,
    initialisation,
    integers,
    normal,
    source_of,
    uniform,
)

DRAWS = {
    "normal": normal,
    "uniform": uniform,
    "integers": lambda shape, source: integers(7, shape, source),
}


@pytest.mark.parametrize("name", DRAWS)
@given(data=st.data(), total=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_rows_of_any_split_are_the_whole(name, data, total, seed):
    cuts = data.draw(st.lists(st.integers(1, total), unique=True).map(sorted))
    edges = sorted({0, *cuts, total})
    shape = (3, 2)
    draw = DRAWS[name]
    generator = derive(seed, "x")
    # Twice in a row, as a loss draws several things.
    whole = [draw((total, *shape), generator) for _ in range(2)]
    for start, stop in itertools.pairwise(edges):
        rows = Rows(derive(seed, "x"), start, stop, total)
        for expected in whole:
            assert torch.equal(draw((stop - start, *shape), rows), expected[start:stop])


@pytest.mark.parametrize("name", DRAWS)
@given(data=st.data(), total=st.integers(1, 25), seed=st.integers(0, 2**40))
def test_an_image_draws_the_same_in_any_batch(name, data, total, seed):
    """And goes on in its own stream, whatever was drawn before, and in what shapes."""
    cuts = data.draw(st.lists(st.integers(1, total), unique=True).map(sorted))
    edges = sorted({0, *cuts, total})
    shapes = data.draw(
        st.lists(st.sampled_from([(), (3,), (2, 5), (1, 4, 4)]), min_size=1, max_size=3)
    )
    draw = DRAWS[name]

    def drawn(start, stop):
        source = PerImage(seed, start, stop)
        assert len(source) == stop - start
        return [draw((stop - start, *shape), source) for shape in shapes]

    whole = drawn(0, total)
    for start, stop in itertools.pairwise(edges):
        for found, expected in zip(drawn(start, stop), whole, strict=True):
            assert torch.equal(found, expected[start:stop])
    # Alone: image 0's own generator, drawing one thing after the other.
    generator = derive(seed, "samples", 0)
    for shape, expected in zip(shapes, whole, strict=True):
        assert torch.equal(draw((1, *shape), generator)[0], expected[0])


def test_images_are_independent_and_seeds_and_names_matter():
    draws = [
        normal((50, 200), PerImage(seed, start, start + 50, name))
        for seed, start, name in (
            (0, 0, "samples"),
            (1, 0, "samples"),
            (0, 50, "samples"),
            (0, 0, "sheet"),
        )
    ]
    rows = torch.cat(draws)
    assert len({tuple(row.tolist()) for row in rows}) == 200
    correlation = torch.corrcoef(rows) - torch.eye(200)
    # 19,900 pairs of rows of 200 numbers: the largest of so many normal numbers of deviation 1/√200.
    assert float(correlation.abs().max()) < 5.5 / 200**0.5
    assert abs(float(rows.mean())) < 0.02
    assert float(rows.std()) == pytest.approx(1, abs=0.02)


def test_the_numbers_of_images_go_where_they_are_wanted():
    for draw in DRAWS.values():
        drawn = [draw((3, 2), PerImage(0, 0, 3)), draw((3, 2), PerImage(0, 0, 3))]
        assert torch.equal(*drawn)
    assert normal((3, 2), PerImage(0, 0, 3)).device.type == "cpu"
    assert normal((3, 2), PerImage(0, 0, 3), "meta").device.type == "meta"
    assert uniform((3, 2), PerImage(0, 0, 3), "meta").device.type == "meta"
    assert integers(9, (3, 2), PerImage(0, 0, 3), "meta").device.type == "meta"
    assert integers(9, (3, 2), PerImage(0, 0, 3)).dtype == torch.int64


def test_images_that_are_not_there():
    with pytest.raises(ValueError, match="must be the 3 images of the source, got the shape"):
        normal((4, 2), PerImage(0, 2, 5))
    for start, stop in ((3, 3), (4, 3), (-1, 2)):
        with pytest.raises(ValueError, match="stop must be above start"):
            PerImage(0, start, stop)


def test_a_seed_or_a_source():
    found = normal((4, 2), source_of(4, None, 7))
    assert torch.equal(found, normal((4, 2), PerImage(7, 0, 4)))
    generator = derive(0)
    assert source_of(4, generator, None) is generator
    for source, seed in ((None, None), (generator, 0)):
        with pytest.raises(ValueError, match="give either seed"):
            source_of(4, source, seed)


def test_the_distributions():
    generator = derive(0, "test")
    x = normal((40_000,), generator)
    assert abs(float(x.mean())) < 0.03
    assert float(x.std()) == pytest.approx(1, abs=0.03)
    u = uniform((40_000,), generator)
    assert 0 <= float(u.min()) < 0.001 < 0.999 < float(u.max()) < 1
    counts = integers(5, (40_000,), generator).bincount()
    assert len(counts) == 5
    assert (counts - 8000).abs().max() < 500


def test_a_source_is_a_function_of_its_names():
    names = [(0,), (1,), (0, 1), (0, "1"), (0, "a", 1), (0, "a1"), (1, "a")]
    draws = [tuple(normal((4,), derive(*n)).tolist()) for n in names]
    assert len(set(draws)) == len(names)
    assert draws == [tuple(normal((4,), derive(*n)).tolist()) for n in names]


def test_known_numbers():
    """Should a change of the library change the streams, every saved run would go on with other noise."""
    assert derive(0, "noise", 3).initial_seed() == 4204803787491696027


def test_the_wrong_number_of_samples():
    rows = Rows(derive(0), 2, 5, 10)
    with pytest.raises(ValueError, match="must be the 3 samples of this process, got the shape"):
        normal((4, 2), rows)


@pytest.mark.parametrize(("start", "stop", "total"), [(0, 0, 3), (2, 1, 3), (-1, 1, 3), (0, 4, 3)])
def test_rows_outside_the_batch(start, stop, total):
    with pytest.raises(ValueError, match="do not lie in a batch of 3"):
        Rows(derive(0), start, stop, total)


def test_numbers_go_where_they_are_wanted():
    assert normal((2,), derive(0), "meta").device.type == "meta"
    assert uniform((2,), derive(0)).device.type == "cpu"


def test_initialisation_is_a_function_of_the_seed_and_leaves_no_trace():
    before = torch.default_generator.get_state()
    weights = []
    for seed in (0, 0, 1):
        with initialisation(seed):
            weights.append(nn.Linear(3, 3).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(RuntimeError), initialisation(0):
        raise RuntimeError
    assert torch.equal(torch.default_generator.get_state(), before)
