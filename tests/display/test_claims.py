"""Claims insist on their numbers."""

import pytest
import yaml

from companion.display import claim, glue
from companion.display.claims import find_registry

GOOD = {"between": (0.0, 1.0), "verdict": "true", "because": "it is so"}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    entry = {"chapter": "03-x", "text": "A < B", "verdict": "true", "explanation": "e"}
    (tmp_path / "claims.yml").write_text(yaml.safe_dump({"IS-2": entry}))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    return tmp_path / "claims.yml"


@pytest.mark.usefixtures("registry")
def test_card_carries_text_number_and_verdict():
    card = claim("IS-2", 0.25, format=".2f", unit="nats", **GOOD)
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
        claim("IS-2", value, **GOOD)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_interval_is_closed(value):
    assert claim("IS-2", value, **GOOD).value == value


@pytest.mark.usefixtures("registry")
def test_unknown_id_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown claim 'IS-22'"):
        claim("IS-22", 0.5, **GOOD)


@pytest.mark.usefixtures("registry")
def test_verdict_must_be_the_registrys():
    with pytest.raises(ValueError, match=r"'wrong'.*'true'"):
        claim("IS-2", 0.5, **{**GOOD, "verdict": "wrong"})


@pytest.mark.usefixtures("registry")
def test_empty_interval():
    with pytest.raises(ValueError, match="empty"):
        claim("IS-2", 0.5, **{**GOOD, "between": (1.0, 0.0)})


def test_registry_is_found_from_below(registry, tmp_path):
    assert find_registry() == registry
    assert find_registry(tmp_path) == registry


def test_notebook_on_its_own_still_measures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_registry() is None
    assert claim("IS-2", 0.5, **GOOD).text == ""


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
