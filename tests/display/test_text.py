"""Marked-up text: escaping and measured numbers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.display.text import format_number, measured, require_words, to_attribute, to_html


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.12345, "0.123"),
        (-2.0, "−2"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
        (float("nan"), "not a number"),
    ],
)
def test_numbers_as_readers_know_them(value, expected):
    assert format_number(value, ".3g") == expected


@given(st.integers(-(10**30), 10**30))
def test_whole_numbers_are_shown_to_the_last_digit(value):
    assert format_number(value, ",d") == f"{value:,}".replace("-", "−")
    assert format_number(value, "d").replace("−", "-") == str(value)


@given(st.integers(-(2**53), 2**53))
def test_floats_that_are_whole_take_whole_formats(value):
    assert format_number(float(value), "d") == format_number(value, "d")


def test_measured_numbers_survive_escaping():
    html = to_html(f"a < b, {measured(1.5, '.2f')} & `x_t`, *not* 2*3*4")
    assert html == (
        'a &lt; b, <data class="measured" value="1.5">1.50</data> &amp; <code>x_t</code>, <em>not</em> 2*3*4'
    )


def test_attributes_hold_plain_text():
    assert to_attribute(f'"quoted" {measured(2.0)}') == "&quot;quoted&quot; 2"


@given(st.text())
def test_no_markup_of_the_author_survives(text):
    # Only our own elements may appear, whatever the text.
    tags = set(re.findall(r"</?([a-z]+)", to_html(text)))
    assert tags <= {"code", "em", "data"}


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_blank_words_are_refused(blank):
    with pytest.raises(ValueError, match="caption"):
        require_words("caption", blank)
