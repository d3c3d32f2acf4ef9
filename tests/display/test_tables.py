"""Tables of measured numbers."""

import pytest

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
