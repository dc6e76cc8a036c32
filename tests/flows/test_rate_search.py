"""`rate: auto` in whole runs: found once, written where a user and a resume read it."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tiny
from alloytune import run
from alloytune.build.caching import make_reader
from alloytune.build.moving import build_moving
from alloytune.errors import Interrupted
from alloytune.recipe.read import read_recipe, recipe_from
from alloytune.record.folder import RunFolder
from alloytune.stages import stage
from alloytune.stages.rate_search import find_rates, settle
from alloytune.stages.stage import begin_stage, measures_of
from alloytune.stages.verdict import BROKEN, is_broken
from alloytune.tasks.task import Scores
from alloytune.terminal import Terminal
from alloytune.watch import Watcher
from flows.test_resume import assert_equal
from properties.carried_out import begin

STAGES: list[dict[str, Any]] = [
    {"name": "short", "train": "head", "until": {"epochs": 1}},
    {
        "name": "both",
        "attach": {"lora": {"rank": 2}},
        "train": "layers[-1:] | adapter | head",
        "rates": {"layers[-1:] & norm": 1e-3, "head | adapter": "auto"},
        "layer_decay": 0.9,
        "until": {"updates": 220},
        "evaluate": "110 updates",
    },
]


class StopAt(Watcher):
    """Ctrl-C when the second stage has come so far."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_step(self, step: Any, progress: Any) -> None:
        if step.update == self.update:
            raise KeyboardInterrupt


class Tries(Watcher):
    """Notes why stages are tried again, and the loss of the first update of each try."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.losses: list[float] = []

    def on_step(self, step: Any, progress: Any) -> None:
        if step.update == 1:
            self.losses.append(step.loss)

    def on_retry(self, number: int, result: Mapping[str, Any]) -> None:
        self.reasons.append(result["reason"])


def start(place: Path, bert: Path, watcher: Watcher, stages: Sequence[dict[str, Any]] = STAGES) -> RunFolder:
    tiny.make_table(60).write_csv(place.parent / "table.csv")
    given = {"model": str(bert), "batch": 4, "checkpoint": "50 updates", "stages": stages}
    data = {"train": str(place.parent / "table.csv"), "split": {"validation": "20%", "test": "20%"}}
    read = read_recipe("full", (), {**given, "data": data})
    return run.start(read, place, watcher)


def test_a_stage_too_short_to_search_says_so_and_names_its_rate(tmp_path: Path, bert: Path) -> None:
    shown = io.StringIO()
    start(tmp_path / "run", bert, Terminal(Console(file=shown, width=80)), STAGES[:1])
    assert "finding its rate" not in shown.getvalue()
    assert "stage 1: short: no search for its rate" in shown.getvalue()
    assert "107 updates or more; it takes the starting 0.06\n" in shown.getvalue()


@pytest.mark.parametrize(("breaking", "rate", "tries"), [(1, "auto", 2), (9, "auto", 3), (9, 1e-3, 1)])
def test_found_rates_that_broke_the_model_are_lowered(
    breaking: int, rate: str | float, tries: int, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again from the weights before, twice at most; then the verdict tells of it."""
    told, broken = Tries(), iter([True] * breaking + [False] * 9)
    monkeypatch.setattr(stage, "is_broken", lambda before, after: next(broken))
    stages = [{"name": "only", "train": "all", "rate": rate, "until": {"updates": 2}}]
    folder = start(tmp_path / "run", bert, told, stages)
    (result,) = folder.read("results.json")["stages"]
    assert told.reasons == [BROKEN] * (tries - 1)
    assert len(told.losses) == tries
    assert max(told.losses) - min(told.losses) < 0.02  # of the first update: each try begins anew
    assert (result["decision"], result["tries"]) == ("kept", tries)
    first = [1e-2, 3e-4] if rate == "auto" else [rate]
    assert result["rates"] == pytest.approx([0.3 ** (tries - 1) * one for one in first])
    assert (BROKEN in result["reason"]) == (breaking == 9)


def test_a_broken_model_tells_no_rows_apart() -> None:
    def spreads(before: float | None, after: float | None) -> bool:
        return is_broken(Scores({}, spread=before), Scores({}, spread=after))

    assert spreads(0.05, 0.0005)
    assert not spreads(0.05, 0.02)
    assert not spreads(3e-5, 0.0)  # a model that never told them apart
    assert not spreads(None, 0.0)


def test_a_weight_of_a_joint_objective_is_not_searched_away(bert: Path) -> None:
    found, rates = [], []
    for adapter in (0.1, 1.0):
        stage = {"attach": {"lora": {"rank": 2}}, "train": "all | adapter", "joint": {"full": 1, "adapter": adapter}}
        session = begin({"stages": [{"name": "only", **stage, "until": {"updates": 214}}]}, bert)
        moving, _ = begin_stage(session, 0)
        found.append(find_rates(session, 0, moving, moving.selected, make_reader(session, 0, moving)[0], {}))
        rates.append(moving.rates)
    assert found[0] == found[1]
    assert all(one.sweep for one in found[0].values())
    assert rates[0] != rates[1]


@pytest.mark.slow
def test_found_rates_are_written_and_a_resume_goes_on_with_them(tmp_path: Path, bert: Path) -> None:
    alone = start(tmp_path / "alone", bert, Watcher())
    searched = json.loads((tmp_path / "alone/stages/02-both/rates.json").read_text())
    assert set(searched) == {"pretrained", "adapter"}
    assert all(len(side["curve"]) == 7 for side in searched.values())
    assert not json.loads((tmp_path / "alone/stages/01-short/rates.json").read_text())["head"]["curve"]

    stages = recipe_from(alone.read("resolved.json")).stages
    assert (stages[0].rate, stages[0].rates) == (6e-2, {})  # too short to search
    assert stages[1].rate == searched["pretrained"]["rate"]
    assert stages[1].rates == {
        "layers[-1:] & norm": 1e-3,
        "(head | adapter) & adapter": searched["adapter"]["rate"],
        "head | adapter": searched["pretrained"]["rate"],
    }
    assert 1e-3 in alone.read("results.json")["stages"][1]["rates"]

    place = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        start(place, bert, StopAt(120))  # after the first checkpoint of the stage whose rates were searched
    assert_equal(run.resume(place, Watcher()).path, alone.path)


def test_a_new_head_keeps_a_rate_of_its_own_beside_what_is_searched(bert: Path) -> None:
    named = {"rates": {"head | adapter": "auto"}}
    expected = [{"head": 1e-2}, {"(head | adapter) & head": 1e-2}]
    for more, rates in zip(({}, named), expected, strict=True):
        only = {"name": "only", "attach": {"lora": {"rank": 2}}, "train": "adapter | head", "until": {"updates": 110}}
        session = begin({"stages": [{**only, **more}]}, bert)
        moving, _ = begin_stage(session, 0)
        chooser = measures_of(session, 0, None)
        found = find_rates(session, 0, moving, moving.selected, make_reader(session, 0, moving)[0], {})
        (stage,) = settle(session.recipe, 0, found, moving, session.state.roles(), chooser).stages
        assert found.keys() == {"adapter"}
        assert found["adapter"].sweep
        rate = found["adapter"].rate
        assert (stage.rate, stage.rates) == (rate, rates | ({"head | adapter": rate} if more else {}))
        session.recipe = session.recipe.model_copy(update={"stages": [stage]})
        moving = build_moving(session, 0, chooser)
        assert sorted(moving.rates) == sorted([rate, 1e-2])


@pytest.mark.slow
def test_adapters_of_several_kinds_keep_their_distance(tmp_path: Path, bert: Path) -> None:
    attach = [{"lora": {"rank": 2}}, {"prefix": {"length": 3}, "stack": True}]
    both: dict[str, Any] = {"name": "both", "attach": attach, "train": "adapter | head", "until": {"updates": 110}}
    named = {**both, "name": "named", "drop": True, "rates": {"adapter": "auto"}}
    folder = start(tmp_path / "run", bert, Watcher(), [both, named])
    for number, key in ((0, "adapter.prefix"), (1, "(adapter) & adapter.prefix")):
        (found,) = json.loads(next((tmp_path / "run/stages").glob(f"0{number + 1}-*/rates.json")).read_text()).values()
        stage = recipe_from(folder.read("resolved.json")).stages[number]
        assert stage.rate == found["rate"]
        assert stage.rates[key] == pytest.approx(10 * found["rate"])
        of_head = [1e-2] if number == 0 else []  # in the other stage it has learned
        rates = folder.read("results.json")["stages"][number]["rates"]
        assert sorted(rates) == pytest.approx(sorted([10 * found["rate"], found["rate"], *of_head]))
