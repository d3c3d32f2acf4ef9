"""Tables of measured numbers."""

import numpy as np
import pytest
import torch

from companion.display import measured, table


def test_numbers_are_marked_and_formatted():
    html = table(
        [{"model": "GMM", "n": 3, "nats": 1.23456}], caption="c", formats={"nats": ".2f"}
    ).html
    assert '<th scope="row">GMM</th>' in html
    assert '<td class=num><data class="measured" value="3.0">3</data></td>' in html
    assert '<td class=num><data class="measured" value="1.23456">1.23</data></td>' in html


def test_words_are_escaped():
    assert "&lt;b&gt;" in table([{"a": "<b>"}], caption="c").html


@pytest.mark.parametrize(
    ("rows", "formats", "message"),
    [
        ([], None, "no rows"),
        ([{"a": 1}, {"b": 1}], None, "row 1"),
        ([{"a": 1, " ": 1}], None, "column 1 has no name"),
        ([{"a": 1}], {"z": ".2f"}, "'z'"),
    ],
)
def test_bad_tables(rows, formats, message):
    with pytest.raises(ValueError, match=message):
        table(rows, caption="c", formats=formats)


def test_a_measured_number_of_the_caption_is_marked_and_not_in_the_label():
    """Outputs are compared between machines, attributes as they stand."""
    html = table([{"a": 1}], caption=f"falls to {measured(2.5)}, twice").html
    assert 'aria-label="falls to …, twice"' in html
    assert (
        '<caption>falls to <data class="measured" value="2.5">2.5</data>, twice</caption>' in html
    )


def test_caption_required():
    with pytest.raises(ValueError, match="caption"):
        table([{"a": 1}], caption="")


@pytest.mark.parametrize("kind", [torch.tensor, np.array, np.float32, np.float64, float])
def test_numbers_of_every_kind_are_numbers(kind):
    html = table([{"n": "a", "v": kind(0.123456)}], caption="c").html
    assert html.count("<td class=num>") == 1
    assert ">0.123</data>" in html


@pytest.mark.parametrize("kind", [torch.tensor, np.array, np.int64, np.uint8, int])
@pytest.mark.parametrize(("format", "shown"), [(None, "200"), (",d", "200"), ("x", "c8")])
def test_whole_numbers_of_every_kind_are_whole(kind, format, shown):
    formats = {"v": format} if format else None
    assert (
        f">{shown}</data>" in table([{"n": "a", "v": kind(200)}], caption="c", formats=formats).html
    )


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_arrays_are_no_cells(kind):
    with pytest.raises(TypeError, match=r"'v'.*\(2,\)"):
        table([{"n": "a", "v": kind([1.0, 2.0])}], caption="c")


@pytest.mark.parametrize("truth", [True, np.bool_(True), torch.tensor(True)])
def test_truth_values_are_words(truth):
    assert "<td>True</td>" in table([{"n": "a", "v": truth}], caption="c").html


def test_a_format_for_whole_numbers_needs_them():
    with pytest.raises(ValueError, match=r"',d' is for whole numbers.*2\.5"):
        table([{"n": "a", "v": 2.5}], caption="c", formats={"v": ",d"})
