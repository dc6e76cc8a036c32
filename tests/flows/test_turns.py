"""Which weights move at which update, through whole runs: turns, layers that join, layers that freeze."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from alloytune import run
from alloytune.build.session import Session
from alloytune.errors import InputError, Interrupted
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.read import read_recipe
from alloytune.record.folder import RunFolder, StageFolder
from alloytune.train.loop import Step
from alloytune.train.stage import Progress
from alloytune.watch import Watcher
from flows.test_pace import carry_out_stages
from flows.test_resume import weights

NUM_LAYERS = 4
RATE = 1e-3
START = """
model: {model}
data: {{train: table.csv, split: {{validation: 20%, test: 20%}}}}
seed: 3
batch: 8
checkpoint: 2 updates
stages:
"""
STEADY = f"rate: {RATE}, schedule: constant, warmup: 0, clip: null, weight_decay: 0.1, dropout: 0, keep: last"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # weights as usual would give gradients of 1e-8 here, no larger than what AdamW divides by beside them
    return tiny.save_bert(tmp_path_factory.mktemp("deep"), layers=NUM_LAYERS, spread=0.2)


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_recipe(folder: Path, model: Path, stages: str) -> Path:
    by_lot = pl.col("label").shuffle(seed=0)  # what is soon learned has gradients of next to nothing from then on
    tiny.make_table(150).with_columns(by_lot).write_csv(folder / "table.csv")
    recipe = folder / "recipe.yaml"
    recipe.write_text(START.format(model=model) + stages)
    return recipe


class Moves(Watcher):
    """Remembers by how much every element moved at every update, and ends the run after the stages."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Tensor]] = []

    def on_model(self, session: Session) -> None:
        self.session = session

    def on_stage(self, *_: object) -> None:
        self.start = self.before = self.now()

    def now(self) -> dict[str, Tensor]:
        return copy_weights(self.session.state.model, named_weights(self.session.state.model))

    def on_step(self, step: Step, progress: Progress) -> None:
        now = self.now()
        self.updates.append({name: weight - self.before[name] for name, weight in now.items()})
        self.before = now

    def on_finish(self, doing: str) -> None:
        raise KeyboardInterrupt

    def moved(self) -> list[frozenset[str]]:
        """Give what moved at every update."""
        return [frozenset(name for name, change in update.items() if change.any()) for update in self.updates]

    def parts(self) -> list[str]:
        """Say for every update what moved: `e` for embeddings, the numbers of layers, `h` for the head."""
        roles = self.session.state.roles()
        layers = {str(number): names for number, names in enumerate(roles.whole_layers)}
        names = {"e": roles.members["embeddings"], **layers, "h": roles.members["head"]}
        return ["".join(part for part, held in names.items() if held & moved) for moved in self.moved()]


def watch(folder: Path, model: Path, stage: str) -> tuple[Moves, StageFolder]:
    """Carry out a recipe of one stage."""
    moves = Moves()
    with pytest.raises(Interrupted):
        run.start(read_recipe(str(write_recipe(folder, model, f"  - {stage}\n"))), folder / "run", moves)
    return moves, RunFolder(folder / "run").stage(0, "only")


def turns_of(stage: StageFolder) -> list[dict[str, Any]]:
    return stage.rows("turns")


def assert_record_tells_what_moved(moves: Moves, stage: StageFolder) -> None:
    """Nothing moves but what the record says, and all of that does (a bias of keys may have no gradient)."""
    rows = turns_of(stage)
    for update, moved in enumerate(moves.moved(), 1):
        told = next(row["moves"].keys() for row in reversed(rows) if row["update"] <= update)
        assert moved <= told
        assert not [name for name in told - moved if "key.bias" not in name], update
    result = stage.result()
    assert result is not None
    starts = [row["update"] for row in rows] + [len(moves.updates) + 1]
    elements = [sum(row["moves"].values()) for row in rows]
    lengths = [end - start for start, end in pairwise(starts)]
    average = sum(n * length for n, length in zip(elements, lengths, strict=True)) / len(moves.updates)
    assert result["moved_on_average"] == round(average)
    assert result["moved_on_average"] < result["trained_parameters"] <= result["parameters"]


def test_lisa(tmp_path: Path, deep: Path) -> None:
    """Embeddings and head always, two layers by lot, drawn anew every 20 updates (Pan et al. 2024)."""
    stage = (
        '{name: only, train: {always: embeddings | head, rotate: {choose: "random(2, by=layer)", every: 20 updates, '
        f"state: keep}}}}, until: {{updates: 45}}, evaluate: 45 updates, {STEADY}}}"
    )
    moves, folder = watch(tmp_path, deep, stage)
    parts = moves.parts()
    assert {len(part) for part in parts} == {4}
    assert all(part[0] == "e" and part[-1] == "h" for part in parts)
    blocks = [parts[start : start + 20] for start in range(0, 45, 20)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert len({block[0] for block in blocks}) > 1
    assert [row["update"] for row in turns_of(folder)] == [1, 21, 41]
    assert_record_tells_what_moved(moves, folder)

    again = Moves()
    with pytest.raises(Interrupted):
        run.start(read_recipe("recipe.yaml", ["seed=4", "stages.only.until.updates=1"]), tmp_path / "other", again)
    assert again.parts() != parts[:1]


def steps_taken(moves: Moves, name: str) -> list[float]:
    """Give the median movement of a weight's elements at every update, as a part of the rate."""
    return [float(update[name].abs().median()) / RATE for update in moves.updates]


def test_badam(tmp_path: Path, deep: Path) -> None:
    """One layer after another, bottom to top and around; each turn begins as a first one (Luo et al. 2024)."""
    stage = (
        '{name: only, train: {always: head, rotate: {choose: "cycle(by=layer)", every: 3 updates}}, '
        f"until: {{updates: 14}}, evaluate: 14 updates, {STEADY}}}"
    )
    moves, folder = watch(tmp_path, deep, stage)
    assert moves.parts() == ["0h"] * 3 + ["1h"] * 3 + ["2h"] * 3 + ["3h"] * 3 + ["0h"] * 2
    assert_record_tells_what_moved(moves, folder)
    name = "bert.encoder.layer.0.output.dense.weight"
    taken = steps_taken(moves, name)
    for first in (0, 12):  # Adam's first update is the whole rate, whatever the gradient
        assert taken[first] == pytest.approx(1.0, abs=5e-3)
    assert taken[1] < 0.99
    assert taken[3:12] == [0.0] * 9


def test_a_layer_that_joins_late_has_its_own_bias_correction_and_kept_memory_counts_on(
    tmp_path: Path, deep: Path
) -> None:
    stage = (
        '{name: only, train: {always: head, rotate: {choose: "cycle(by=layer)", every: 3 updates, state: keep}}, '
        f"until: {{updates: 14}}, evaluate: 14 updates, {STEADY}}}\n"
        f"  - {{name: next, train: head, state: keep, until: {{updates: 1}}, rate: 1e-3}}"
    )
    moves, folder = watch(tmp_path, deep, stage)
    name = "bert.encoder.layer.{}.output.dense.weight".format
    for layer, first in enumerate((0, 3, 6, 9)):
        assert steps_taken(moves, name(layer))[first] == pytest.approx(1.0, abs=5e-3)
    assert steps_taken(moves, name(0))[12] < 0.99
    memory = load_file(folder.checkpoint / "optimizer.safetensors")
    counted = [int(memory[f"{name(layer)}|step"]) for layer in range(NUM_LAYERS)]
    assert counted == [5, 3, 3, 3]
    assert int(memory["classifier.weight|step"]) == 14


def test_hft(tmp_path: Path, deep: Path) -> None:
    """Half of the matrices of each kind by lot, drawn anew every epoch (Hui et al. 2024)."""
    choose = '"random(50%, of=attention) | random(50%, of=mlp)"'
    stage = (
        f"{{name: only, train: {{always: head, rotate: {{choose: {choose}, every: 1 epoch}}}}, until: {{epochs: 3}}, "
        f"evaluate: 3 epochs, {STEADY}}}"
    )
    moves, folder = watch(tmp_path, deep, stage)
    per_epoch = len(moves.updates) // 3
    rows = turns_of(folder)
    assert [row["update"] for row in rows] == [1, per_epoch + 1, 2 * per_epoch + 1]
    assert_record_tells_what_moved(moves, folder)
    roles = moves.session.state.roles()
    for role in ("attention", "mlp"):
        whole = sum(moves.before[name].numel() for name in roles.members[role])
        for row in rows:
            share = sum(count for name, count in row["moves"].items() if name in roles.members[role]) / whole
            assert share == pytest.approx(0.5, abs=0.07)
    assert len({frozenset(row["moves"]) for row in rows}) == 3


@pytest.mark.parametrize(
    ("choose", "share"), [("random(10%, by=element, of=mlp)", 0.1), ("top(fisher, 5%, by=element, of=mlp)", 0.05)]
)
def test_single_elements_take_turns(tmp_path: Path, deep: Path, choose: str, share: float) -> None:
    """What is not in a turn keeps its bits; what joins moves by its own bias correction."""
    stage = (
        f'{{name: only, train: {{always: head, rotate: {{choose: "{choose}", every: 3 updates}}}}, '
        f"until: {{updates: 8}}, evaluate: 8 updates, {STEADY}}}"
    )
    moves, folder = watch(tmp_path, deep, stage)
    mlp = moves.session.state.roles().members["mlp"]
    flat = [torch.cat([update[name].flatten() for name in sorted(mlp)]) for update in moves.updates]
    moved = [sum(flat[update] != 0 for update in range(first, min(first + 3, 8))) for first in (0, 3, 6)]
    for row, marks in zip(turns_of(folder), moved, strict=True):
        told = sum(count for name, count in row["moves"].items() if name in mlp)
        assert told == round(share * marks.numel())
        assert 0.98 * told <= int((marks > 0).sum()) <= told
    late = (flat[3] != 0) & (moved[0] == 0)
    assert int(late.sum()) > 10
    assert float(flat[3][late].abs().median()) == pytest.approx(RATE, rel=0.1)
    noted = ["scores" in row for row in turns_of(folder)]
    assert noted == ([False, True, True] if "fisher" in choose else [False] * 3)


@pytest.mark.parametrize(
    ("unfreeze", "expected"),
    [
        ("{from: top, one: epoch}", ["3h", "23h", "123h", "0123h", "e0123h", "e0123h"]),
        ("{every: 2 updates, from: bottom}", ["eh", "e0h", "e01h", "e012h", "e0123h"]),
    ],
)
def test_gradual_unfreezing(tmp_path: Path, deep: Path, unfreeze: str, expected: list[str]) -> None:
    """The head and a first layer, then one more layer at a time (Howard and Ruder 2018)."""
    until = "epochs: 6" if "epoch" in unfreeze else "updates: 12"
    stage = (
        f"{{name: only, train: all, unfreeze: {unfreeze}, until: {{{until}}}, evaluate: 60 updates, layer_decay: 0.5, "
        f"{STEADY}}}"
    )
    moves, folder = watch(tmp_path, deep, stage)
    length = len(moves.updates) // 6
    parts = moves.parts()
    assert parts == [part for part in expected for _ in range(length)] + expected[-1:] * (6 - len(expected)) * length
    assert len(turns_of(folder)) == 5
    assert_record_tells_what_moved(moves, folder)
    layer = "bert.encoder.layer.{}.output.dense.weight".format
    for height in range(NUM_LAYERS):  # the first update of each layer is its whole rate
        name = layer(height)
        taken = [step for step in steps_taken(moves, name) if step]
        assert taken[0] == pytest.approx(0.5 ** (NUM_LAYERS - height), rel=0.1)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ('train: {always: head, rotate: {choose: "cycle(by=layer, of=adapter)", every: 2 updates}}', "0 1 2 3 0"),
        ("train: adapter | head, unfreeze: {every: 2 updates}", "3 23 123 0123 0123"),
        ("train: layers | adapter | head, unfreeze: {every: 2 updates}", "3 23 123 0123 0123"),
        ("train: adapter | head, freeze_when: {change: below 9, check: 20%}", "0123 3 3 3 3"),
        ('train: "adapter.layers[-2:] | head"', "23 23 23 23 23"),
    ],
)
def test_adapters_take_turns_join_and_freeze_with_their_layers(
    tmp_path: Path, deep: Path, stage: str, expected: str
) -> None:
    stage = f"{{name: only, attach: {{lora: {{rank: 2}}}}, {stage}, until: {{updates: 10}}, {STEADY}}}"
    moves, _ = watch(tmp_path, deep, stage)
    assert moves.parts() == [f"{part}h" for part in expected.split() for _ in range(2)]
    base = moves.session.state.roles().members["layers"]
    assert any(base & moved for moved in moves.moved()) == ("layers |" in stage)


def test_freezing_a_settled_prefix(tmp_path: Path, deep: Path) -> None:
    """The rate falls over the stage and down the layers, so that they settle one after another from the bottom up."""
    stage = (
        "{name: only, train: all, freeze_when: {change: below 3e-4, check: 10%}, until: {updates: 30}, "
        f"evaluate: 30 updates, layer_decay: 0.4, {STEADY.replace('constant', 'linear')}}}"
    )
    moves, folder = watch(tmp_path, deep, stage)
    rows, parts = turns_of(folder), moves.parts()
    assert [row["update"] for row in rows] == list(range(1, 31, 3))
    assert_record_tells_what_moved(moves, folder)
    order = "e0123h"
    frozen = 0
    for row in rows:
        settled = [change < 3e-4 for change in row["changes"][:-1]] + [False]
        frozen += settled.index(False)
        assert row["num_frozen"] == frozen
        assert set(parts[row["update"] - 1 : row["update"] + 2]) == {order[frozen:]}
    assert len({row["num_frozen"] for row in rows}) > 2


def test_changes_are_those_since_the_last_check(tmp_path: Path, deep: Path) -> None:
    stage = (
        "{name: only, train: layers | head, freeze_when: {change: below 1e-9, check: 50%}, until: {updates: 4}, "
        f"evaluate: 4 updates, {STEADY}}}"
    )
    moves, folder = watch(tmp_path, deep, stage)
    first, second = turns_of(folder)
    assert (first["changes"], second["num_frozen"]) == ([], 0)
    layers = moves.session.state.roles().stacks["layers"]
    after = {
        name: moves.before[name] - sum(update[name] for update in moves.updates[2:]) for name in moves.before
    }  # weights at the check
    moved = {name: moves.updates[0][name] + moves.updates[1][name] for name in after}
    for layer, change in zip(layers, second["changes"], strict=True):
        size = torch.cat([(after[name] - moved[name]).flatten() for name in layer]).norm()
        assert change == pytest.approx(
            float(torch.cat([moved[name].flatten() for name in layer]).norm() / size), rel=1e-3
        )


RESUMED = """
  - {name: kept, train: {always: head, rotate: {choose: "random(2, by=layer)", every: 3 updates, state: keep}},
     rate: 2e-3, until: {updates: 8}, optimizer: {sgd: {momentum: 0.9}}, mixout: 0.2}
  - {name: reset, train: {always: head, rotate: {choose: "cycle(by=layer)", every: 3 updates}}, rate: 2e-3,
     until: {flops: 4e7}, optimizer: lion, state: reset, clip: {norm: 0.5, per: group}}
  - {name: scored, train: {rotate: {choose: "top(rgn, 25%) | top(fisher, 5%, by=element, of=embeddings)",
     every: 3 updates}}, rate: 2e-3, until: {updates: 8}, score: {batches: 2}, evaluate: 5 updates,
     accept: {gain: 0.9}, otherwise: {retry: {times: 1}}}
  - {name: joined, attach: {lora: {rank: 2}}, train: all | adapter, unfreeze: {every: 3 updates}, rate: 2e-3,
     until: {updates: 9}, optimizer: schedule_free}
  - {name: frozen, merge: true, train: all, freeze_when: {change: below 1e-2, check: 20%}, rate: 2e-3,
     until: {updates: 15}, layer_decay: 0.5}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("lives", "updates", "checkpoint"), [(3, 13, 2), (50, 2, 1)])
def test_ended_again_and_again_and_gone_on_in_the_same_bytes(
    lives: int, updates: int, checkpoint: int, tmp_path: Path, deep: Path
) -> None:
    """Long lives end within turns and at their borders; short ones meet every border from both sides."""
    recipe = write_recipe(tmp_path, deep, RESUMED)
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    carry_out_stages(recipe, alone)
    recipe.write_text(recipe.read_text().replace("checkpoint: 2 updates", f"checkpoint: {checkpoint} updates"))
    for _ in range(lives):
        carry_out_stages(recipe, ended, update=updates)
    carry_out_stages(recipe, ended)
    assert weights(ended) == weights(alone)
    files = list(alone.glob("stages/*/*.jsonl"))
    assert len(files) == 15
    for file in files:
        rows, again = (
            [json.loads(line) | {"seconds": 0} for line in (folder / file.relative_to(alone)).read_text().splitlines()]
            for folder in (alone, ended)
        )
        assert rows == again


def test_a_rejected_stage_gives_back_what_moved_in_any_turn(tmp_path: Path, deep: Path) -> None:
    stage = (
        '{name: only, train: {always: head, rotate: {choose: "cycle(by=layer)", every: 1 updates}}, '
        f"until: {{updates: 4}}, evaluate: 2 updates, {STEADY.replace('keep: last', 'keep: best')}, "
        "accept: {gain: 0.99}}"
    )
    moves, _ = watch(tmp_path, deep, stage)
    assert moves.parts() == ["0h", "1h", "2h", "3h"]
    now = moves.now()
    assert all(torch.equal(now[name], moves.start[name]) for name in now)
    assert not torch.equal(moves.before["classifier.weight"], moves.start["classifier.weight"])


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("train: head, unfreeze: {}", r"stages\[0\].unfreeze: 0 layer moves"),
        ('train: "layers[0] | head", freeze_when: {change: below 1e-3}', r"stages\[0\].freeze_when: 1 layer moves"),
        (
            'train: {always: layers, rotate: {choose: "random(1, by=layer)", every: 1 epoch}}',
            r"rotate.choose: all that may be chosen moves in every turn anyhow",
        ),
        ('train: {rotate: {choose: "cycle(9, by=layer)", every: 1 epoch}}', "finds 4 layers to choose from"),
    ],
)
def test_what_would_change_nothing_is_refused_before_training(
    tmp_path: Path, deep: Path, stage: str, message: str
) -> None:
    recipe = write_recipe(tmp_path, deep, f"  - {{name: only, {stage}}}\n")
    with pytest.raises(InputError, match=message):
        run.start(read_recipe(str(recipe)), tmp_path / "run", Watcher())
