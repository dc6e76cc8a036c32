"""Weights that are drawn anew when a stage begins, through whole runs."""

from pathlib import Path

import pytest

from alloytune import run
from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.models.weights import Weights, copy_weights, named_weights
from alloytune.recipe.read import read_recipe
from alloytune.watch import Watcher
from flows.test_pace import carry_out_stages, write_recipe
from flows.test_resume import weights

TOP = "bert.encoder.layer.1."
HELD = "train: head, rate: 1e-3, until: {updates: 4}, evaluate: 2 updates"


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Starts(Watcher):
    """Remembers the weights that the model came with, those that each stage trains from, and those at the end."""

    def __init__(self) -> None:
        self.starts: list[Weights] = []

    def on_model(self, session: Session) -> None:
        self.session = session
        self.came = self.now()

    def on_stage(self, *_: object) -> None:
        self.starts.append(self.now())

    def on_finish(self, doing: str) -> None:
        self.end = self.now()

    def now(self) -> Weights:
        return copy_weights(self.session.state.model, named_weights(self.session.state.model))


def watch(folder: Path, model: Path, stages: str, *, seed: int = 3) -> Starts:
    starts = Starts()
    recipe = write_recipe(folder, model, stages)
    run.start(read_recipe(str(recipe), [f"seed={seed}"]), folder / f"run-{seed}", starts)
    return starts


def changed(before: Weights, after: Weights) -> set[str]:
    return {name for name, weight in before.items() if not weight.equal(after[name])}


def test_what_is_named_is_drawn_as_for_a_new_model(tmp_path: Path, bert: Path) -> None:
    stages = f'  - {{name: only, reinit: "layers[-1:]", {HELD}}}\n'
    seen, other = (watch(tmp_path, bert, stages, seed=seed) for seed in (3, 4))
    (start,) = seen.starts
    named = {name for name in start if name.startswith(TOP)}
    matrices = {name for name in named if start[name].dim() == 2}
    assert changed(seen.came, start) == matrices
    for name in named:
        if "LayerNorm" in name:
            assert (start[name] == float(name.endswith("weight"))).all()
        elif name.endswith("bias"):
            assert not start[name].any()
        else:
            assert float(start[name].std()) == pytest.approx(0.02, rel=0.25)  # the config's initializer_range
    assert changed(start, other.starts[0]) >= matrices
    assert not changed({name: seen.end[name] for name in named}, start)  # they stay so, as nothing of them moves


def test_a_stage_that_is_rolled_back_gives_back_what_was_there(tmp_path: Path, bert: Path) -> None:
    seen = watch(
        tmp_path,
        bert,
        f"  - {{name: first, {HELD}}}\n"
        '  - {name: anew, reinit: "layers[-1:]", train: layers | head, rate: 1e-3, until: {updates: 2}, '
        "accept: {gain: 0.99}}\n",
    )
    assert changed(seen.came, seen.starts[1]) > {f"{TOP}output.dense.weight"}
    assert not {name for name in changed(seen.came, seen.end) if name.startswith("bert.encoder")}


def test_gone_on_in_the_same_bytes(tmp_path: Path, bert: Path) -> None:
    """Memory of weights that are drawn anew is not kept, whichever life a stage is carried out in."""
    recipe = write_recipe(
        tmp_path,
        bert,
        "  - {name: first, train: all, rate: 1e-3, until: {updates: 5}}\n"
        "  - {name: anew, reinit: mlp, attach: {lora: {rank: 2}}, train: layers | adapter | head, rate: 1e-3, "
        "until: {updates: 7}, state: keep}\n"
        "  - {name: last, merge: true, reinit: head, train: head, rate: 1e-3, until: {updates: 4}}\n",
    )
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    carry_out_stages(recipe, alone)
    for _ in range(5):
        carry_out_stages(recipe, ended, update=3)
    carry_out_stages(recipe, ended)
    assert weights(ended) == weights(alone)


def test_what_matches_nothing_is_refused_before_anything_is_written(tmp_path: Path, bert: Path) -> None:
    recipe = write_recipe(tmp_path, bert, f'  - {{name: only, reinit: "layers[7:]", {HELD}}}\n')
    with pytest.raises(InputError, match=r"stages\[0\].reinit: 'layers\[7:\]' matches nothing"):
        run.start(read_recipe(str(recipe)), tmp_path / "run", Watcher())
    assert not (tmp_path / "run").exists()
