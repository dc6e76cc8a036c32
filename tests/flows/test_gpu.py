"""The same on an accelerator. Run with `python -m pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import alloytune
import tiny
from alloytune.machine import find_machine
from alloytune.models.weights import copy_weights

pytestmark = pytest.mark.gpu

STAGES = [
    {"name": "full", "train": "all", "rate": 3e-3, "until": {"epochs": 6}},
    {"name": "partial", "train": "layers[-1:] | head", "rate": 1e-3, "until": {"epochs": 1}},
    {
        "name": "adapter",
        "attach": {"lora": {"rank": 2}},
        "train": "adapter | head",
        "rate": 3e-3,
        "until": {"epochs": 1},
    },
]


def tune(bert: Path, output: Path, **more: object) -> alloytune.Tuned:
    recipe = {"batch": 8, "stages": STAGES, **more}
    return alloytune.tune(tiny.make_table(200), str(bert), recipe, output=output, seed=1)


def test_the_machine_is_found() -> None:
    machine = find_machine()
    assert machine.device.type == "cuda"
    assert machine.precision == torch.bfloat16
    assert find_machine("float32").precision == torch.float32


def test_a_run_learns_saves_and_loads_again(bert: Path, tmp_path: Path) -> None:
    tuned = tune(bert, tmp_path / "run")
    assert tuned.results["device"].startswith("cuda")
    assert tuned.scores["accuracy"] > 0.8
    assert max(tuned.results["reload_difference"].values()) < 1e-3
    assert tuned.predict(["a superb film", "a dull plot"])["label"].to_list() == ["good", "bad"]
    peak = tuned.results["stages"][0]["peak_memory_bytes"]
    assert 0 < peak < 2**30  # of the device, not of the process


def test_frozen_weights_keep_their_bits(bert: Path, tmp_path: Path) -> None:
    tune(bert, tmp_path / "run")
    before = load_file(tmp_path / "run/stages/01-full/checkpoint/weights.safetensors")
    after = load_file(tmp_path / "run/stages/02-partial/checkpoint/weights.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("bert.encoder.layer.1.", "classifier.")) for name in moved)


def test_micro_batches_change_little(tmp_path: Path) -> None:
    folder = tiny.save_bert(tmp_path / "bert", dropout=0.0)
    stages = [{**STAGES[0], "until": {"updates": 3}, "rate": 1e-3, "keep": "last"}]
    whole, split = (
        tune(folder, tmp_path / f"run-{size}", micro_batch=size, precision="float32", stages=stages) for size in (8, 3)
    )
    one, other = (copy_weights(t.model, dict(t.model.named_parameters())) for t in (whole, split))
    moved = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    assert moved.quantile(0.99) < 1e-4


def test_what_frozen_layers_give_is_kept_in_main_memory(bert: Path, tmp_path: Path) -> None:
    stage = {**STAGES[1], "train": "layers[-1:] | head", "until": {"epochs": 3}, "optimizer": "sgd", "keep": "last"}
    kept, computed = (
        tune(bert, tmp_path / str(cache), precision="float32", stages=[{**stage, "cache": cache}])
        for cache in (True, False)
    )
    facts = kept.results["stages"][0]["cache"]
    assert facts["kept"]
    assert facts["texts_read"] > 2 * facts["texts_computed"]
    one, other = (copy_weights(t.model, dict(t.model.named_parameters())) for t in (kept, computed))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-3
