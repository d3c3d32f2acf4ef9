"""Claims are put at risk: the verdict follows from the numbers, and a test that decides nothing is refused."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from companion.display import Control, Nuance, above, below, claim, glue, inside, outside
from companion.display.claims import Claim, find_registry

OLD = {"between": (0.0, 1.0), "verdict": "true", "because": "it is so"}
CIRCLE = Control("an evenly spread circle", 3.0)
NEW = {
    "refuted_if": below(4.0, because="an evenly spread circle scores less"),
    "control": CIRCLE,
    "because": "Six modes of eight are kept.",
}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    ids = {"IS-2": "true", "IS-3": "wrong", "FID-1": "nuanced"}
    entries = {
        id: {"chapter": "03-x", "text": "A < B", "verdict": verdict, "explanation": "e"}
        for id, verdict in ids.items()
    }
    (tmp_path / "claims.yml").write_text(yaml.safe_dump(entries))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    return tmp_path / "claims.yml"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder without a registry."""
    monkeypatch.chdir(tmp_path)


# --- conditions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "inner", "words"),
    [
        (below(2, because="r"), {1.9: True, 2.0: False, 3.0: False}, "below 2 nats"),
        (above(2, because="r"), {1.9: False, 2.0: False, 2.1: True}, "above 2 nats"),
        (
            outside(-1, 2, because="r"),
            {-1.1: True, -1.0: False, 2.0: False, 2.1: True},
            "outside −1 to 2 nats",
        ),
        (
            inside(-1, 2, because="r"),
            {-1.1: False, -1.0: True, 2.0: True, 2.1: False},
            "inside −1 to 2 nats",
        ),
    ],
)
def test_conditions_hold_where_they_say(condition, inner, words):
    assert {value: condition.holds(value) for value in inner} == inner
    assert condition.words("nats") == words


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_outside_is_the_complement_of_inside(value, low, width):
    high = low + width
    assert outside(low, high, because="r").holds(value) is not inside(low, high, because="r").holds(
        value
    )


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_step_shorter_than_the_distance_changes_nothing(value, bound):
    condition = below(bound, because="r")
    step = 0.99 * condition.distance(value)
    assert {condition.holds(value + s) for s in (-step, 0, step)} == {condition.holds(value)}


@pytest.mark.parametrize("bound", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("make", [below, above])
def test_a_condition_open_to_everything_is_refused(make, bound):
    with pytest.raises(ValueError, match="finite bound"):
        make(bound, because="r")


@pytest.mark.parametrize("make", [outside, inside])
@pytest.mark.parametrize("bounds", [(-math.inf, 1), (0, math.inf), (1, 1), (2, 1), (math.nan, 1)])
def test_bounds_are_finite_and_in_order(make, bounds):
    with pytest.raises(ValueError, match=r"finite bound|lower bound first"):
        make(*bounds, because="r")


@pytest.mark.parametrize("make", [lambda r: below(1, because=r), lambda r: inside(0, 1, because=r)])
@pytest.mark.parametrize("reason", ["", "  "])
def test_a_bound_needs_its_reason(make, reason):
    with pytest.raises(ValueError, match="because"):
        make(reason)


# --- verdicts -----------------------------------------------------------------------------------------

SHOWN = Nuance("some seeds keep all", 0.9, shown_if=above(0.5, because="half would be chance"))
HIDDEN = Nuance("some seeds keep all", 0.1, shown_if=above(0.5, because="half would be chance"))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("id", "value", "control", "nuance", "verdict"),
    [
        ("IS-2", 6.0, 3.0, None, "true"),
        ("IS-2", 6.0, 3.0, HIDDEN, "true"),
        ("FID-1", 6.0, 3.0, SHOWN, "nuanced"),
        ("IS-3", 3.0, 6.0, None, "wrong"),
        ("IS-3", 3.0, 6.0, SHOWN, "wrong"),
    ],
)
def test_the_verdict_follows_from_the_numbers(id, value, control, nuance, verdict):
    settings = {**NEW, "control": Control("c", control), "nuance": nuance}
    assert claim(id, value, **settings).verdict == verdict
    other = {"IS-2": "FID-1", "FID-1": "IS-3", "IS-3": "IS-2"}[id]
    with pytest.raises(AssertionError, match=rf"which makes it '{verdict}'.*claims.yml says"):
        claim(other, value, **settings)


@pytest.mark.usefixtures("alone")
@given(
    st.floats(-100, 100),
    st.floats(-100, 100),
    st.floats(-100, 100),
    st.sampled_from(["below", "above"]),
)
def test_no_claim_passes_with_a_control_on_its_own_side(value, control, bound, side):
    condition = {"below": below, "above": above}[side](bound, because="r")
    settings = {"refuted_if": condition, "control": Control("c", control), "because": "b"}
    if condition.holds(value) == condition.holds(control):
        with pytest.raises((AssertionError, ValueError), match="control"):
            claim("IS-2", value, **settings)
    else:
        card = claim("IS-2", value, **settings)
        assert card.verdict == ("wrong" if condition.holds(value) else "true")


@pytest.mark.usefixtures("alone")
def test_a_control_with_the_claims_own_number_is_refused():
    with pytest.raises(ValueError, match="the measured value itself"):
        claim("IS-2", 6.0, **{**NEW, "control": Control("a copy", 6.0)})


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("value", "spread", "control", "fault"),
    [
        (6.0, 0.5, Control("c", 3.6), "the control, 3.6 ± 0.5"),
        (6.0, 0.5, Control("c", 3.6, spread=0.1), None),
        (6.0, None, Control("c", 3.6, spread=0.4), "the control, 3.6 ± 0.4"),
        (4.3, 0.5, Control("c", 1.0), "the measured value, 4.3 ± 0.5"),
        (4.3, 0.2, Control("c", 1.0), None),
        (6.0, None, Control("c", 3.999), None),
    ],
)
def test_nothing_hangs_on_noise(value, spread, control, fault):
    settings = {**NEW, "control": control, "spread": spread}
    if fault is None:
        assert claim("IS-2", value, **settings).verdict == "true"
    else:
        with pytest.raises(AssertionError, match=f"{fault}, is within its spread"):
            claim("IS-2", value, **settings)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_measurement(value):
    with pytest.raises(AssertionError, match="finite number"):
        claim("IS-2", value, **NEW)
    with pytest.raises(AssertionError, match="finite number"):
        Control("c", value)
    with pytest.raises(AssertionError, match="finite number"):
        Nuance("n", value, shown_if=above(0, because="r"))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("spread", [-0.1, math.nan, math.inf])
def test_spreads_are_standard_deviations(spread):
    with pytest.raises(ValueError, match="standard deviation"):
        claim("IS-2", 6.0, spread=spread, **NEW)
    with pytest.raises(ValueError, match="standard deviation"):
        Control("c", 1.0, spread=spread)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("left_out", ["refuted_if", "control"])
def test_the_test_is_written_in_the_call(left_out):
    settings = {key: value for key, value in NEW.items() if key != left_out}
    with pytest.raises(TypeError, match="give refuted_if"):
        claim("IS-2", 6.0, **settings)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("extra", [{"between": (0, 9)}, {"verdict": "true"}])
def test_the_verdict_cannot_be_stated_as_well(extra):
    with pytest.raises(TypeError, match="the verdict is computed"):
        claim("IS-2", 6.0, **NEW, **extra)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, torch.tensor, int])
def test_numbers_of_every_kind_are_taken(kind):
    card = claim("IS-2", kind(6), **{**NEW, "control": Control("c", kind(3))}, spread=kind(1) * 0)
    assert card.value == 6.0
    assert json.loads(json.dumps(card.record()))["control"]["value"] == 3.0


# --- cards --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registry")
def test_card_shows_the_whole_test():
    card = claim("FID-1", 6.0, **NEW, nuance=SHOWN, spread=0.5, format=".1f", unit="of 8 <modes>")
    assert isinstance(card, Claim)
    for part in (
        "A &lt; B",
        ">6.0</data> ± <data",
        ">0.5</data> of 8 &lt;modes&gt;",
        "Would be refuted if</b> below 4 of 8 &lt;modes&gt;, because an evenly spread circle scores less.",
        "Control:</b> an evenly spread circle: <data",
        ">3.0</data> of 8 &lt;modes&gt;; refuted, as it must be.",
        "Nuance:</b> some seeds keep all. Measured: <data",
        "shown if above 0.5, because half would be chance.",
        "Six modes of eight are kept.",
        'class="cmp-claim cmp-verdict-nuanced" id="claim-FID-1"',
    ):
        assert part in card.html, part


@pytest.mark.usefixtures("registry")
def test_card_of_a_refuted_claim_says_that_the_test_can_be_passed():
    html = claim("IS-3", 3.0, **{**NEW, "control": Control("a good one", 6.0)}, nuance=HIDDEN).html
    assert "Refuted if</b> below 4, because" in html
    assert "not refuted, so the test can be passed" in html
    assert "Nuance, not shown here:" in html


@pytest.mark.usefixtures("registry")
def test_record_is_enough_to_compute_the_verdict_again():
    data, metadata = claim("FID-1", 6.0, **NEW, nuance=SHOWN)._repr_mimebundle_()
    assert set(data) == {"text/html", "text/plain"}
    assert "6.0" not in data["text/plain"]  # compared between machines
    assert json.loads(json.dumps(metadata["companion"])) == {
        "claim": "FID-1",
        "value": 6.0,
        "spread": None,
        "refuted_if": {
            "kind": "below",
            "bounds": [4.0],
            "because": "an evenly spread circle scores less",
        },
        "control": {"name": "an evenly spread circle", "value": 3.0, "spread": None},
        "nuance": {
            "value": 0.9,
            "shown_if": {"kind": "above", "bounds": [0.5], "because": "half would be chance"},
        },
        "verdict": "nuanced",
    }


# --- the older form -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("registry")
def test_older_card_carries_text_number_and_verdict():
    card = claim("IS-2", 0.25, format=".2f", unit="nats", **OLD)
    assert "A &lt; B" in card.html
    assert ">0.25</data> nats" in card.html
    assert "cmp-verdict-true" in card.html
    data, metadata = card._repr_mimebundle_()
    assert set(data) == {"text/html", "text/plain"}
    assert "0.25" not in data["text/plain"]  # compared between machines
    assert metadata["companion"] == {
        "claim": "IS-2",
        "value": 0.25,
        "between": [0.0, 1.0],
        "verdict": "true",
    }


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_number_outside_its_interval(value):
    with pytest.raises(AssertionError, match=r"IS-2.*not between 0 and 1"):
        claim("IS-2", value, **OLD)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_interval_is_closed(value):
    assert claim("IS-2", value, **OLD).value == value


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("form", [OLD, NEW])
def test_unknown_id_suggests_the_nearest(form):
    with pytest.raises(ValueError, match=r"unknown claim 'IS-22'"):
        claim("IS-22", 0.5, **form)


@pytest.mark.usefixtures("registry")
def test_stated_verdict_must_be_the_registrys():
    with pytest.raises(ValueError, match=r"'wrong'.*'true'"):
        claim("IS-2", 0.5, **{**OLD, "verdict": "wrong"})


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("between", "fault"), [((1.0, 0.0), "empty"), ((-math.inf, math.inf), "open to everything")]
)
def test_intervals_that_refute_nothing(between, fault):
    with pytest.raises(ValueError, match=fault):
        claim("IS-2", 0.5, **{**OLD, "between": between})


# --- the registry -------------------------------------------------------------------------------------


def test_registry_is_found_from_below(registry, tmp_path):
    assert find_registry() == registry
    assert find_registry(tmp_path) == registry


@pytest.mark.usefixtures("alone")
def test_notebook_on_its_own_still_measures():
    assert find_registry() is None
    assert claim("IS-2", 0.5, **OLD).text == ""
    assert claim("IS-2", 6.0, **NEW).text == ""


def test_glue_publishes_what_the_book_reads(monkeypatch):
    published = []
    monkeypatch.setattr(
        "IPython.display.publish_display_data",
        lambda data, metadata: published.append((data, metadata)),
    )
    glue("3-number", 0.5, ".2f")
    ((data, metadata),) = published
    prefix = "application/papermill.record/"
    assert data == {prefix + "text/html": '<data class="measured" value="0.5">0.50</data>'}
    assert metadata == {"scrapbook": {"name": "3-number", "mime_prefix": prefix}}
