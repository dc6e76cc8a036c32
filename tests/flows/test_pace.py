"""How fast a stage learns, through whole runs: memory kept, weights held, and the same bytes after an interruption."""

import json
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny
from alloytune import run
from alloytune.errors import InputError, Interrupted
from alloytune.recipe.read import read_recipe
from alloytune.train.loop import Step
from alloytune.train.stage import Progress
from alloytune.watch import Watcher
from flows.test_resume import weights

START = """
model: {model}
data: {{train: table.csv, split: {{validation: 20%, test: 20%}}}}
seed: 3
batch: 8
micro_batch: 4
checkpoint: 2 updates
stages:
"""
RESUMED = """
  - {name: mixed, train: all, rate: 2e-3, until: {updates: 7}, schedule: slanted, layer_decay: 0.8, keep: last,
     decay_to: pretrained, weight_decay: 0.5, dropout: 0.2, mixout: 0.3, label_smoothing: 0.1, r_drop: 0.5}
  - {name: kept, train: all, rate: 2e-3, until: {updates: 6}, state: keep, decay_to: stage-start, weight_decay: 0.5,
     mixout: {share: 0.3, to: stage-start}, clip: {norm: 0.5, per: group}, schedule: stable-then-decay}
  - {name: free, train: all, rate: 2e-3, until: {updates: 7}, optimizer: schedule_free, evaluate: 3 updates, keep: last}
  - {name: freer, train: all, rate: 2e-3, until: {updates: 5}, optimizer: schedule_free, state: keep,
     evaluate: 2 updates}
  - {name: low, train: all, rate: 2e-3, until: {updates: 5}, optimizer: {galore: {rank: 4, every: 2}}}
  - {name: muon, attach: {lora: {rank: 2}}, train: adapter | head, rate: 2e-3, until: {updates: 5}, optimizer: muon}
  - {name: small, merge: true, train: all, rate: 2e-3, until: {updates: 5}, optimizer: lion, clip: null}
"""


class Ends(Watcher):
    """Ends the run without saving: at a given update, counted over all stages, and when the stages are done."""

    def __init__(self, update: int | None = None) -> None:
        self.updates = count(1)
        self.update = update

    def on_step(self, step: Step, progress: Progress) -> None:
        if next(self.updates) == self.update:
            raise KeyboardInterrupt

    def on_finish(self, doing: str) -> None:
        raise KeyboardInterrupt


def carry_out_stages(recipe: Path, output: Path, update: int | None = None) -> None:
    """Start a run, or go on with it, up to an update or the end of its last stage."""
    go = partial(run.resume, output) if output.exists() else partial(run.start, read_recipe(str(recipe)), output)
    with pytest.raises(Interrupted):
        go(watcher=Ends(update))


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_recipe(folder: Path, model: Path, stages: str) -> Path:
    tiny.make_table(150).write_csv(folder / "table.csv")
    recipe = folder / "recipe.yaml"
    recipe.write_text(START.format(model=model) + stages)
    return recipe


@pytest.mark.slow
def test_ended_every_few_updates_and_gone_on_in_the_same_bytes(tmp_path: Path, bert: Path) -> None:
    recipe = write_recipe(tmp_path, bert, RESUMED)
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    carry_out_stages(recipe, alone)
    for _ in range(4):
        carry_out_stages(recipe, ended, update=11)
    carry_out_stages(recipe, ended)
    assert weights(ended) == weights(alone)
    assert any("optimizer" in name and "z" in name for name in weights(alone))
    for file in alone.glob("stages/*/*.jsonl"):
        kept = [{**json.loads(line), "seconds": 0} for line in file.read_text().splitlines()]
        again = [
            {**json.loads(line), "seconds": 0} for line in (ended / file.relative_to(alone)).read_text().splitlines()
        ]
        assert kept == again


def test_kept_memory_counts_on_and_every_stage_warms_up(tmp_path: Path, bert: Path) -> None:
    """Weights that moved before count on, others begin at 0; a stage after a merge warms up like the first."""
    stages = """
  - {name: head, train: head, rate: 1e-3, until: {updates: 6}, keep: last, warmup: 50%}
  - {name: more, train: "layers[-1:] | head", rate: 1e-3, until: {updates: 4}, state: keep, warmup: 50%}
  - {name: lora, attach: {lora: {rank: 2}}, train: adapter | head, rate: 1e-3, until: {updates: 3}, state: keep,
     warmup: 50%}
  - {name: merged, merge: true, attach: {lora: {rank: 2}}, train: adapter | head, rate: 1e-3, until: {updates: 4},
     state: keep, warmup: 50%}
  - {name: last, train: head | adapter, rate: 1e-3, until: {updates: 2}, state: keep, warmup: 50%}
"""
    folder = tmp_path / "run"
    carry_out_stages(write_recipe(tmp_path, bert, stages), folder)

    def counted(stage: str) -> dict[str, float]:
        memory = load_file(folder / f"stages/{stage}/checkpoint/optimizer.safetensors")
        return {key.removesuffix("|step"): float(value) for key, value in memory.items() if key.endswith("|step")}

    assert counted("01-head")["classifier.bias"] == 6
    more = counted("02-more")
    assert (more["classifier.bias"], more["bert.encoder.layer.1.output.dense.bias"]) == (10, 4)
    assert {steps for name, steps in counted("03-lora").items() if "lora" in name} == {3}
    merged = counted("04-merged")
    assert merged["classifier.bias"] == 17
    assert {steps for name, steps in merged.items() if "lora" in name} == {4}  # another adapter, though named the same
    assert not (folder / "stages/05-last/checkpoint/optimizer.safetensors").exists()
    for number, (name, updates) in enumerate({"head": 6, "more": 4, "lora": 3, "merged": 4, "last": 2}.items(), 1):
        first = json.loads((folder / f"stages/{number:02}-{name}/steps.jsonl").read_text().splitlines()[0])
        assert first["rate"] == pytest.approx(1e-3 * 0.5 / updates / 0.5)


def test_decay_holds_to_where_it_leads(tmp_path: Path, bert: Path) -> None:
    """A strong decay ends near the pretrained weights, near those at the stage's start, or near zero."""
    stages = """
  - {{name: away, train: all, rate: 1e-2, until: {{updates: 4}}, evaluate: 4 updates, keep: last}}
  - {{name: held, train: all, rate: 1e-3, until: {{updates: 10}}, evaluate: 10 updates, keep: last, weight_decay: 300,
     schedule: constant, decay_to: {}}}
"""
    name = "bert.encoder.layer.1.output.dense.weight"
    pretrained = load_file(bert / "model.safetensors")[name]
    for to in ("pretrained", "stage-start", "zero"):
        folder = tmp_path / to
        carry_out_stages(write_recipe(tmp_path, bert, stages.format(to)), folder)
        away, held = (
            load_file(folder / f"stages/{stage}/checkpoint/weights.safetensors")[name]
            for stage in ("01-away", "02-held")
        )
        gaps = {"pretrained": (held - pretrained).norm(), "stage-start": (held - away).norm(), "zero": held.norm()}
        assert min(gaps, key=lambda key: float(gaps[key])) == to
        assert gaps[to] < 0.2 * (away - pretrained).norm()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("train: head, optimizer: muon", "muon is for matrices inside the body"),
        ("train: all, optimizer: galore", "larger than rank 128"),
        ("train: head, mixout: 0.1", "no pretrained matrix moves"),
        ("train: head, layer_decay: 0.9", "no layer moves"),
        ("train: all, dropout: 0, r_drop: 1", "both passes are the same"),
    ],
)
def test_what_would_change_nothing_is_refused_before_training(
    tmp_path: Path, bert: Path, stage: str, message: str
) -> None:
    stages = f"\n  - {{name: fine, train: all, rate: 1e-3}}\n  - {{name: bad, rate: 1e-3, {stage}}}\n"
    with pytest.raises(InputError, match=rf"stages\[1\]\..*{message}"):
        run.start(read_recipe(str(write_recipe(tmp_path, bert, stages))), tmp_path / "run", Watcher())
    assert not (tmp_path / "run").exists()
