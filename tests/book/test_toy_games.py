"""The recorded games of chapter 6: the tool plays the chapter's own cells, and what is committed is up to date."""

import json
from dataclasses import asdict

import nbformat
import pytest
import torch
import toy_games

SHORT = toy_games.Game(target="ring", rule="non-saturating + R₁", steps=3)


def committed() -> list[dict]:
    return json.loads(toy_games.RECORD.read_text())["games"]


def test_the_record_is_whole_and_of_today_s_cells():
    found = toy_games.record()
    assert found["games"], "the chapter's cells have changed: python book/tools/toy_games.py"
    assert [entry["game"] for entry in found["games"]] == [asdict(g) for g in toy_games.plan()]
    for entry in found["games"]:
        modes = {"ring": 8, "grid": 25}[entry["game"]["target"]]
        assert all(len(entry[key]) == 10 for key in ("kept", "near", "fullest", "moves"))
        assert all(0 <= kept <= modes for kept in entry["kept"])
        assert all(1 / modes <= share <= 1 for share in entry["fullest"])
        steps = entry["game"]["steps"]
        assert [int(step) for step in entry["kept_at"]] == [
            steps * i // toy_games.PARTS for i in range(1, toy_games.PARTS + 1)
        ]
        assert entry["kept_at"][str(steps)] == entry["kept"]


def test_a_game_is_played_once_and_the_same_twice(tmp_path):
    path = tmp_path / "games.json"
    toy_games.measure([SHORT], path, copies=2)
    first = json.loads(path.read_text())["games"]
    toy_games.measure([SHORT], path, copies=2)
    assert json.loads(path.read_text())["games"] == first
    again = toy_games.outcome(SHORT, copies=2)
    assert {k: v for k, v in again.items() if k != "seconds"}.items() <= first[0].items()


def test_other_cells_begin_a_new_record(tmp_path, monkeypatch):
    path = tmp_path / "games.json"
    toy_games.measure([SHORT], path, copies=2)
    cells = [cell + "\n# a comment changes nothing" for cell in toy_games.chapter_cells()]
    monkeypatch.setattr(toy_games, "chapter_cells", lambda: cells)
    assert len(toy_games.record(path)["games"]) == 1
    cells.append("RULES['new'] = RULES['hinge']")
    assert not toy_games.record(path)["games"]
    cells.pop()
    monkeypatch.setattr(toy_games, "EVERY", toy_games.EVERY + 1)  # counted otherwise
    assert not toy_games.record(path)["games"]


def test_the_cells_are_the_chapter_s(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("a = 1", metadata={"tags": [toy_games.TAG]}),
        nbformat.v4.new_code_cell("a = 2"),
    ]
    path = tmp_path / "chapter.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert toy_games.chapter_cells(path) == ["a = 1"]


@pytest.mark.parametrize(("target", "name"), [("ring", "ring"), ("grid", "square")])
def test_mode_counts_pass_real_draws_and_fail_even_spread(target, name):
    names = toy_games.chapter()
    mixture = names[name]
    g = torch.Generator().manual_seed(0)
    draws = mixture.sample(6000, g).view(3, 2000, 2).float()
    assert (names["modes_kept"](draws, mixture) == len(mixture.means)).all()
    u = torch.rand(3, 2000, 2, generator=g)
    turn = 2 * torch.pi * u[..., 0]
    even = 5 * u - 2.5 if target == "grid" else 2 * torch.stack([turn.cos(), turn.sin()], 2)
    assert (names["modes_kept"](even, mixture) == 0).all()
    one = draws[:1, :1].expand(1, 2000, 2)
    assert names["modes_kept"](one, mixture).item() <= 1
    counts, near = names["census"](draws, mixture)
    assert (counts.sum(1) == 2000).all()
    assert (near <= counts).all()


@pytest.mark.parametrize(
    ("rule", "power"), [("non-saturating + R₁", 2), ("Wasserstein + penalty", None)]
)
def test_penalties_of_linear_networks(rule, power):
    """A network without a hidden layer has the slope w everywhere: ½γ‖w‖² and λ(‖w‖ − 1)², summed over the copies."""
    names = toy_games.chapter()
    g = torch.Generator().manual_seed(1)
    judges = names["Perceptrons"](4, 2, 1, source=g)
    _, r1, between = names["RULES"][rule]
    x, fake = torch.randn(2, 4, 16, 2, generator=g)
    found = names["penalty"](judges, x, fake, r1, between, g)
    norms = judges.layers[0].squeeze(2).norm(dim=1)
    wanted = r1 * norms**2 / 2 if power else between * (norms - 1) ** 2
    assert torch.isclose(found, wanted.sum())


def test_copies_learn_apart():
    """A step for many copies is the step that each would have taken alone."""
    names = toy_games.chapter()
    many = names["Perceptrons"](3, 2, 8, 1, source=torch.Generator().manual_seed(2))
    x = torch.randn(3, 32, 2, generator=torch.Generator().manual_seed(3))
    alone = []
    for i in range(3):
        one = names["Perceptrons"](1, 2, 8, 1, source=torch.Generator().manual_seed(4))
        for mine, theirs in zip(one.layers, many.layers, strict=True):
            mine.data.copy_(theirs.data[i : i + 1])
        names["descend"](names["adam"](one, 0.1), one(x[i : i + 1]).square().mean(), one)
        alone.append(one)
    names["descend"](names["adam"](many, 0.1), 3 * many(x).square().mean(), many)
    for i, one in enumerate(alone):
        for mine, theirs in zip(one.layers, many.layers, strict=True):
            assert torch.allclose(mine[0], theirs[i], atol=1e-5)
