"""Every wrong recipe is refused with its place, its path and words that help."""

from pathlib import Path

import pytest

from alloytune.errors import Problem, RecipeError
from alloytune.recipe.read import read_recipe
from recipe.wrong_recipes import ALL, Wrong

# The wording of pydantic, Python and ruamel, which should not reach the user.
FOREIGN = (
    "Input should",
    "Extra inputs",
    "valid dictionary",
    "instance of",
    "Value error",
    "block mapping",
    "any token",
)


def problems_of(path: Path, text: str) -> list[Problem]:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(path))
    return caught.value.problems


@pytest.mark.parametrize("wrong", ALL.values(), ids=ALL)
def test_wrong(wrong: Wrong, tmp_path: Path) -> None:
    before, mark, after = wrong.text.partition("▲")
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    file = tmp_path / "wrong.yaml"
    (problem,) = problems_of(file, before + after)
    assert (problem.source, problem.path) == (str(file), wrong.path)
    assert (problem.line, problem.column) == ((line, column) if mark else (1, 1))
    assert [word for word in wrong.words if word not in problem.message] == [], problem.message
    assert not any(word in problem.message for word in FOREIGN)


TEN = """\
model_name: bert
metric: f1
data: {text: a, label: a}
seed: -1
batch: 8
micro_batch: 16
stages:
  - name: full
    train: heed
    lr: 1e-4
    until: {patience: 2}
  - name: full
    train: adapter
    rate: fast
    accept: {gain: 0}
    otherwise: rolback
"""


def test_ten_mistakes_at_once(tmp_path: Path) -> None:
    found = problems_of(tmp_path / "ten.yaml", TEN)
    assert [(problem.line, problem.column, problem.path) for problem in found] == [
        (1, 1, "model_name"),
        (2, 9, "metric"),
        (3, 24, "data.label"),
        (4, 7, "seed"),
        (6, 14, "micro_batch"),
        (9, 12, "stages[0].train"),
        (10, 5, "stages[0].lr"),
        (11, 12, "stages[0].until"),
        (12, 11, "stages[1].name"),
        (13, 12, "stages[1].train"),
        (14, 11, "stages[1].rate"),
        (16, 16, "stages[1].otherwise"),
    ]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("stages:\n  - {name: a, train: all, lr: 1}\n", ["stages[0].lr"]),
        ("stages:\n  - {nam: a, train: all, rate: 1}\n", ["stages[0].nam"]),
        ("stages:\n  - {name: a, train: all, rates: {all: fast}}\n", ["stages[0].rates.all"]),
        ("stages:\n  - {name: a, train: all, rate: 1, epochs: 3, until: {}}\n", ["stages[0].epochs"]),
        ("stages:\n  - {name: a, train: adapter, rate: 1, attach: 8}\n", ["stages[0].attach"]),
        ("stages: 5\nmicro_batch: 64\n", ["stages", "micro_batch"]),
        ("stages:\n  - 5\n  - {name: b, train: adapter, rate: 1}\n", ["stages[0]"]),
    ],
)
def test_one_mistake_is_not_told_twice(text: str, paths: list[str], tmp_path: Path) -> None:
    assert [problem.path for problem in problems_of(tmp_path / "recipe.yaml", text)] == paths


@pytest.mark.parametrize(
    "stages",
    [
        "[{name: a, train: adapter, rate: 1, attach: {lora: {}}}, {name: b, train: all, rate: 1, merge: true}]",
        "[{name: a, train: adapter, rate: 1, attach: {lora: {}}, accept: {}}, "
        "{name: b, train: all, rate: 1, merge: true}]",
        "[{name: a, train: adapter, rate: 1, attach: {lora: {}}, accept: {}, otherwise: stop}, "
        "{name: b, train: adapter, rate: 1}]",
        "[{name: a, train: adapter, rate: 1, attach: {lora: {}}, accept: {}, otherwise: skip}, "
        "{name: b, train: adapter, rate: 1}]",
        "[{name: a, train: adapter, rate: 1, attach: {lora: {}}}, "
        "{name: b, train: adapter, rate: 1, merge: true, attach: {bottleneck: {}}}]",
        "[{name: a, train: 'top(rgn, 25%, of=attention | mlp) | head', rate: {scale: fisher}, score: {batches: 4}}]",
        "[{name: a, train: {always: embeddings | head, rotate: {choose: 'random(2, by=layer)', every: 20 updates}}}]",
        "[{name: a, train: {rotate: {choose: cycle(), every: 1 epoch, state: keep}}, optimizer: muon}]",
        "[{name: a, train: {rotate: {choose: 'top(fisher, 1%, by=element) | random(2)', every: 1 epoch}}, "
        "score: {batches: 2}}]",
        "[{name: a, train: all, unfreeze: {from: top, one: epoch}, optimizer: schedule_free}, "
        "{name: b, train: all, freeze_when: {change: below 1e-3, check: 10%}}]",
        "[{name: a, attach: {lora: {}}, train: {always: adapter, rotate: {choose: cycle(), every: 1 epoch}}}]",
        "[{name: a, train: 'adapter | top(lowrank_misfit, 10%)', attach: {lora: {on: 'layers - random(2)'}}}]",
        "[{name: a, train: 'top(fisher, 0.5%, by=element, of=all) | lowest_layers(2)', rates: {'bottom(snr, 1)': 1}}]",
        "[{name: a, train: adapter.low | adapter.high, rates: {adapter.low: 1}, attach: "
        "[{name: low, lora: {on: attention}}, {name: high, lora: {on: mlp, pissa: true}}]}, "
        "{name: b, train: adapter, merge: low, attach: {name: new, ia3: {}, stack: true}}, "
        "{name: c, train: head, drop: new, merge: high}]",
        "[{name: a, attach: {lora: {}}, train: layers | adapter, optimizer: sgd, joint: {mode: views, full: 0.2, "
        "adapter: '0 -> 1 cosine'}}, {name: b, train: layers | adapter, joint: {mode: views, full: 1, adapter: 1}}, "
        "{name: c, train: all | adapter, joint: {mode: sample, full: 2, adapter: 2}, r_drop: 1, optimizer: lion}]",
        "[{name: a, attach: {lora: {}}, train: all | adapter, joint: {full: '1 until 40%, 0', "
        "adapter: '0 until 9 updates, 1'}}, {name: b, train: all | adapter, joint: {full: '1 until 40%, 0', "
        "adapter: '0 until 40%, 0 -> 1 until 60%, 1'}}]",
        "[{name: a, train: adapter, attach: {folder: somewhere}}, {name: b, train: all, merge: folder}]",
        "[{name: a, train: adapter, rate: 1, attach: {vera: {}}}, "
        "{name: b, train: adapter, rate: 1, merge: true, attach: {oft: {}}}]",
        "[{name: a, train: all, rates: {all: 1}, until: {epochs: 2, patience: 9}, schedule: constant, warmup: 5%}]",
    ],
)
def test_what_looks_wrong_and_is_not(stages: str, tmp_path: Path) -> None:
    file = tmp_path / "right.yaml"
    file.write_text(f"stages: {stages}\n", encoding="utf-8")
    read_recipe(str(file))
