"""A run killed at any moment and resumed ends in the same bytes as one left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import tiny
from flows.lives import life

RECIPE = """
model: {model}
data: {{train: table.csv, split: {{validation: 20%, test: 20%}}}}
seed: 3
batch: 8
micro_batch: 3
checkpoint: {checkpoint}
stages:
  - name: full
    train: all
    rate: 2e-3
    until: {{epochs: 3}}
    evaluate: 5 updates
  - name: partial
    train: random(50%, by=element, of=layers[-1:]) | random(50%, of=layers[0]) | head
    rate: 1e-3
    until: {{epochs: 1}}
    accept: {{gain: 0.9}}
    otherwise: {{retry: {{times: 1}}}}
  - name: adapter
    attach: {{lora: {{rank: 2, dropout: 0.1}}}}
    train: adapter | head
    rate: 3e-3
    until: {{epochs: 2, patience: 2}}
  - name: more
    train: adapter | top(fisher, 20%, by=element, of=attention) | top(rgn, 50%, of=mlp)
    rate: {{scale: gradient, largest: 5e-4}}
    rates: {{adapter: 2e-3}}
    score: {{batches: 3}}
    until: {{epochs: 1}}
  - name: merged
    merge: true
    attach: {{lora: {{rank: 2, on: "top(lowrank_misfit, 50%, of=attention)"}}}}
    train: all | adapter
    rate: 5e-4
    schedule: cosine
    until: {{epochs: 1}}
    keep: last
"""
MEASURED = {"seconds", "tokens_per_second", "peak_memory_bytes", "cache"}  # what a process read back is its own


def write_recipe(folder: Path, model: Path, checkpoint: str = "3 updates") -> Path:
    tiny.make_table(150).write_csv(folder / "table.csv")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, checkpoint=checkpoint))
    return recipe


def weights(run: Path) -> dict[str, bytes]:
    """Give every tensor that a run saved, by file and name, as bytes."""
    found = {}
    for file in sorted(run.rglob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                found[f"{file.relative_to(run)}:{name}"] = tensors.get_tensor(name).numpy().tobytes()
    return found


def figures(run: Path) -> Any:
    """Give everything that a run wrote about itself, but for what a clock or the system measured."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(inner) for key, inner in value.items() if key not in MEASURED}
        return [strip(inner) for inner in value] if isinstance(value, list) else value

    results = strip(json.loads((run / "results.json").read_text()))
    steps = [strip(json.loads(line)) for file in sorted(run.rglob("*.jsonl")) for line in file.read_text().splitlines()]
    return results, steps


def assert_equal(run: Path, other: Path) -> None:
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert len(one) > 50
    assert figures(run) == figures(other)
    assert not list(run.rglob(".*.partial")) + list(run.rglob("progress-*"))


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, bert: Path) -> None:
    recipe = write_recipe(tmp_path, bert)
    assert life(recipe, tmp_path / "alone") == 0
    draw = random.Random(0)
    kills = 0
    while life(recipe, tmp_path / "killed", draw.uniform(0.3, 1.2) if kills < 4 else None) == -signal.SIGKILL:
        kills += 1
    assert kills >= 3
    assert_equal(tmp_path / "killed", tmp_path / "alone")


@pytest.mark.slow
def test_killed_once_each_at_twenty_random_moments(tmp_path: Path, bert: Path) -> None:
    recipe = write_recipe(tmp_path, bert, checkpoint="5 updates")
    assert life(recipe, tmp_path / "alone") == 0
    began = time.monotonic()
    assert life(recipe, tmp_path / "timed") == 0
    seconds = time.monotonic() - began
    draw = random.Random(1)
    kills = 0
    for number in range(40):  # a run that ended before its time was up was not killed
        run = tmp_path / f"run-{number}"
        if life(recipe, run, draw.uniform(0.05, 0.8 * seconds)) == -signal.SIGKILL:
            kills += 1
            assert life(recipe, run) == 0
            assert_equal(run, tmp_path / "alone")
        if kills == 20:
            return
    pytest.fail(f"only {kills} of 40 runs lived long enough to be killed")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, bert: Path) -> None:
    recipe = write_recipe(tmp_path, bert)
    assert life(recipe, tmp_path / "alone") == 0
    run = tmp_path / "damaged"
    assert life(recipe, run, until=lambda: len(list(run.glob("stages/01-full/progress-*"))) > 1) == -signal.SIGKILL
    newest = max(run.glob("stages/01-full/progress-*"))
    (newest / "weights.safetensors").write_bytes(b"half")
    (run / "stages/01-full/.progress-00-00009999.partial").mkdir()
    assert life(recipe, run) == 0
    assert_equal(run, tmp_path / "alone")


def test_ctrl_c_saves_and_tells_how_to_go_on(tmp_path: Path, bert: Path) -> None:
    recipe = write_recipe(tmp_path, bert, checkpoint="1 minutes")
    text = recipe.read_text().replace("until: {epochs: 3}", "until: {epochs: 300}", 1)
    recipe.write_text(text)
    words = [sys.executable, "-m", "alloytune", "train", str(recipe), "--output", "run"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    steps = tmp_path / "run/stages/01-full/steps.jsonl"
    for _ in range(600):
        if steps.exists() and len(steps.read_text().splitlines()) > 5:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "alloytune train --resume run" in err
    assert "Traceback" not in err
    saved = max((tmp_path / "run/stages/01-full").glob("progress-*"))
    assert json.loads((saved / "state.json").read_text())["progress"]["update"] == len(steps.read_text().splitlines())
