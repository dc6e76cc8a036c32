"""The Python call, and what a run promises."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import alloytune
import tiny
from flows.test_resume import assert_equal

TABLE = tiny.make_table(150)
SPLIT = {"validation": 0.2, "test": 0.2}


def stage(name: str, train: str, **more: object) -> dict[str, object]:
    return {"name": name, "train": train, "rate": 3e-3, "until": {"epochs": 1}, **more}


def test_tune_predict_save_load(bert: Path, tmp_path: Path) -> None:
    recipe = {"batch": 8, "stages": [stage("full", "all", until={"epochs": 14})]}
    table = pd.DataFrame(TABLE.to_dict(as_series=False)).rename(columns={"text": "said", "label": "mood"})
    columns = {"text": "said", "label": "mood", "split": SPLIT}
    tuned = alloytune.tune(table, str(bert), recipe, output=tmp_path / "run", seed=1, **columns)
    assert tuned.scores["accuracy"] > 0.7
    answers = tuned.predict(["a superb film", "a dull plot"])
    assert answers["label"].to_list() == ["good", "bad"]

    saved = tuned.save(tmp_path / "copy")
    with pytest.raises(alloytune.InputError, match="not empty"):
        tuned.save(tmp_path / "copy")
    plain = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    inputs = AutoTokenizer.from_pretrained(saved)(["a superb film", "a dull plot"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        chances = plain(**inputs).logits.softmax(-1).numpy()
    assert plain.config.id2label == {0: "bad", 1: "good"}
    assert np.allclose(chances, answers.select("probability_bad", "probability_good").to_numpy(), atol=1e-5)

    again = alloytune.load(tmp_path / "run")
    alone = again.predict(["a superb film"])["probability"][0]
    assert alone == pytest.approx(answers["probability"][0], abs=1e-6)
    assert again.scores == tuned.scores
    with pytest.raises(alloytune.InputError, match="does not know 'ugly'"):
        again.evaluate_table(pl.DataFrame({"text": ["so so"], "label": ["ugly"]}))


def test_full_and_adapter_in_one_stage_twice_gives_the_same_bytes(bert: Path, tmp_path: Path) -> None:
    recipe = alloytune.Recipe(
        model=str(bert),
        batch=8,
        stages=[
            alloytune.Stage.model_validate(
                stage("both", "all | adapter", attach={"lora": {"rank": 2}}, rates={"adapter": 1e-2})
            ),
            alloytune.Stage.model_validate(stage("part", "layers[-1:] | adapter")),
        ],
    )
    for name in ("one", "two"):
        alloytune.tune(TABLE, recipe=recipe, output=tmp_path / name, split=SPLIT)
    assert_equal(tmp_path / "one", tmp_path / "two")
    base = load_file(tmp_path / "one/base/model.safetensors")
    source = load_file(bert / "model.safetensors")
    moved = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(base[moved], source[moved])
    adapter = load_file(tmp_path / "one/adapter/adapter_model.safetensors")
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in adapter.items())


def test_an_adapter_on_an_untouched_base_names_it(bert: Path, tmp_path: Path) -> None:
    recipe = {"batch": 8, "stages": [stage("adapter", "adapter | head", attach={"lora": {"rank": 2}})]}
    tuned = alloytune.tune(TABLE, str(bert), recipe, output=tmp_path / "run", split={"validation": 0.2, "test": 0})
    assert tuned.results["saved"] == ["adapter", "model"]
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bert)
    assert tuned.results["test"] is None
    assert set(tuned.scores) == {"accuracy", "macro_f1", "loss"}


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(bert: Path, tmp_path: Path) -> None:
    recipe = {"batch": 8, "checkpoint": "1 update", "stages": [stage("full", "all", rate=1e30, warmup=0)]}
    with pytest.raises(alloytune.NotFiniteError, match=r"update \d+: "):
        alloytune.tune(TABLE, str(bert), recipe, output=tmp_path / "run", split=SPLIT)
    for saved in (tmp_path / "run/stages/01-full").glob("progress-*"):
        assert all(torch.isfinite(weight).all() for weight in load_file(saved / "weights.safetensors").values())
    assert not (tmp_path / "run/stages/01-full/checkpoint").exists()


def test_a_full_disk_stops_with_one_line_and_the_run_goes_on_later(bert: Path, tmp_path: Path) -> None:
    TABLE.write_csv(tmp_path / "table.csv")
    words = f"{sys.executable} -m alloytune.cli.main"
    train = f"{words} train full --model {bert} --data table.csv --output run --set stages.0.until.epochs=1"
    # 16 KiB hold the splits and the records, but not the weights
    full = subprocess.run(["bash", "-c", f"ulimit -f 16; {train}"], cwd=tmp_path, capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    (line,) = full.stderr.strip().splitlines()
    assert "cannot be saved" in line
    assert "--resume" in line
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    later = subprocess.run([*words.split(), "train", "--resume", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert later.returncode == 0, later.stderr
    assert (tmp_path / "run/model/model.safetensors").exists()
