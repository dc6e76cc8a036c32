"""The Python call, and what a run promises."""

import json
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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


HELD = pd.DataFrame(TABLE.to_dict(as_series=False)).rename(columns={"text": "said", "label": "mood"})


@pytest.fixture(scope="module")
def tuned(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> alloytune.Tuned:
    """Give the result of a run on columns with names of their own."""
    recipe = {"batch": 8, "stages": [stage("full", "all", until={"epochs": 14})]}
    folder = tmp_path_factory.mktemp("tuned") / "run"
    return alloytune.tune(HELD, str(bert), recipe, output=folder, seed=1, text="said", label="mood", split=SPLIT)


@pytest.fixture(scope="module")
def loaded(tuned: alloytune.Tuned) -> alloytune.Tuned:
    """Give it loaded again."""
    return alloytune.load(tuned.folder.path)


def test_a_result_answers_and_says_what_it_is(tuned: alloytune.Tuned) -> None:
    assert tuned.scores["accuracy"] > 0.7
    assert f"folder={str(tuned.folder.path)!r}, task='classification', test scores={{'accuracy': " in repr(tuned)
    assert len(repr(tuned)) < 400
    assert tuned.predict(["a superb film", "a dull plot"])["label"].to_list() == ["good", "bad"]


def test_what_is_saved_answers_alike_in_plain_transformers(tuned: alloytune.Tuned, tmp_path: Path) -> None:
    saved = tuned.save(tmp_path / "copy")
    with pytest.raises(alloytune.InputError, match="not empty"):
        tuned.save(tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    with chdir(tmp_path / "empty"), pytest.raises(alloytune.InputError, match=r"save: '\.' is the working directory"):
        tuned.save(".")
    plain = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    texts = ["a superb film", "a dull plot"]
    inputs = AutoTokenizer.from_pretrained(saved)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        chances = plain(**inputs).logits.softmax(-1).numpy()
    assert plain.config.id2label == {0: "bad", 1: "good"}
    answers = tuned.predict(texts).select("probability_bad", "probability_good")
    assert np.allclose(chances, answers.to_numpy(), atol=1e-5)


def test_the_line_on_the_model_card_works(tuned: alloytune.Tuned) -> None:
    names: dict[str, Any] = {}
    card = (tuned.folder.model / "README.md").read_text()
    exec(card.partition("```python\n")[2].partition("```")[0].replace("./model", str(tuned.folder.model)), names)
    assert names["labels"] == tuned.predict("a text")["label"].to_list()


def test_a_loaded_result_is_the_same(tuned: alloytune.Tuned, loaded: alloytune.Tuned, tmp_path: Path) -> None:
    both = (one.predict(["a superb film"])["probability"][0] for one in (tuned, loaded))
    assert next(both) == pytest.approx(next(both), abs=1e-6)
    assert loaded.scores == tuned.scores
    assert loaded.predict("a superb film").equals(loaded.predict(["a superb film"]))
    assert loaded.predict(HELD).equals(loaded.predict_table(HELD))
    HELD.to_csv(tmp_path / "held.csv", index=False)
    assert loaded.predict(tmp_path / "held.csv").equals(loaded.predict_table(str(tmp_path / "held.csv")))


def test_a_table_is_scored_as_the_rows_of_the_training_were(loaded: alloytune.Tuned) -> None:
    scores = loaded.evaluate_table(HELD)["values"]
    untidy = HELD.assign(said=" " + HELD["said"], mood=HELD["mood"] + "\t", more=1).to_dict("records")
    untidy += [{"said": "a dull plot"}, {"said": " ", "mood": "bad"}, {"said": "\u200b", "mood": "bad"}]
    result = loaded.evaluate_table(untidy)
    assert result["left_out"] == {"missing text": 2, "missing label": 1}
    assert result["values"] == pytest.approx(scores)
    with pytest.raises(alloytune.InputError, match="no row can be scored \\(missing text: 2, missing label: 1\\)"):
        loaded.evaluate_table(untidy[-3:])
    unknown = 'held.csv: label: 2 rows have what the model does not know: "odd", "ugly"; remove .* knows: "bad", "good"'
    with pytest.raises(alloytune.InputError, match=unknown):
        loaded.evaluate_table({"text": ["so so", "well", "dull"], "label": ["ugly", "odd", "bad"]}, "held.csv")


def test_what_cannot_be_read_has_no_answer_or_is_refused(loaded: alloytune.Tuned) -> None:
    with pytest.raises(alloytune.InputError, match='no column "said"'):
        loaded.predict_table({"id": [1]})
    odd = loaded.predict_table({"text": ["a superb film", None, 7, "\u200b"]})
    assert odd["label"].is_null().to_list() == [False, True, False, True]
    assert odd["probability_bad"].is_null().to_list() == [False, True, False, True]
    with pytest.raises(alloytune.InputError, match="3 is no text"):
        loaded.predict(["fine", 3])
    assert loaded.predict([float("nan"), "a superb film"])["label"].is_null().to_list() == [True, False]
    with pytest.raises(alloytune.InputError, match="trained on single texts"):
        loaded.predict("a text", "its pair")


def test_given_splits_may_be_tables(bert: Path, tmp_path: Path) -> None:
    given = {"validation": TABLE[60:80], "test": TABLE[80:].to_dict(as_series=False)}
    tuned = alloytune.tune(TABLE[:60], str(bert), "head", **given, output=tmp_path / "run")
    assert tuned.results["rows"] == {"train": 60, "validation": 20, "test": TABLE.height - 80}
    assert tuned.folder.read("data/audit.json")["read"] == {"table": 60, "validation": 20, "test": TABLE.height - 80}


def test_a_table_that_is_none_is_refused(bert: Path) -> None:
    with pytest.raises(alloytune.InputError, match=r"data\.validation: there are both a file and a table"):
        alloytune.tune(TABLE, str(bert), "head", validation=TABLE, overrides="data.validation=x.csv")
    with pytest.raises(alloytune.InputError, match="validation table: there are no rows"):
        alloytune.tune(TABLE, str(bert), "head", validation=TABLE[:0])
    with pytest.raises(alloytune.InputError, match="Series is no table"):
        alloytune.tune(pd.Series(["a"]), str(bert), "head")


def test_pairs_and_integer_labels(bert: Path, tmp_path: Path) -> None:
    labels = [1 if label == "good" else 0 for label in TABLE["label"]]
    frame = pd.DataFrame({"text": TABLE["text"].to_list(), "other": "a book", "label": labels})
    recipe = {"batch": 8, "max_length": 20, "stages": [stage("head", "head")]}
    tuned = alloytune.tune(
        frame, str(bert), recipe, output=tmp_path / "run", text_pair="other", split={"validation": 0.2, "test": 0}
    )
    assert tuned.evaluate_table(frame)["rows"] == len(frame)
    assert tuned.evaluate_table(frame.rename(columns={"other": "text_pair"}))["left_out"] == {}
    assert tuned.predict_table(frame).height == len(frame)
    whole = tuned.predict(["a superb film"], ["its pair"])
    assert tuned.predict("a superb film", "its pair").equals(whole)
    cut = AutoTokenizer.from_pretrained(tmp_path / "run/model")("a " * 30, "book", truncation=True)
    assert len(cut["input_ids"]) == 20, "others cut where the run did"
    assert tuned.predict(["a superb film"], "its pair").equals(whole)
    with pytest.raises(alloytune.InputError, match="1 for 2 texts"):
        tuned.predict(["a", "b"], "its pair")
    with pytest.raises(alloytune.InputError, match="trained on pairs"):
        tuned.predict(["a"])

    stages = [{**result, "decision": "rolled back"} for result in tuned.results["stages"]]
    nothing_kept = replace(tuned, results={**tuned.results, "stages": stages})
    assert nothing_kept.scores == tuned.results["start"]["values"]


@pytest.mark.slow
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
    assert set(tuned.scores) == {"accuracy", "macro_f1", "loss", "calibration_error"}


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(bert: Path, tmp_path: Path) -> None:
    recipe = {"batch": 8, "checkpoint": "1 update", "stages": [stage("full", "all", rate=1e30, warmup=0)]}
    with pytest.raises(alloytune.NotFiniteError, match=r"update \d+: "):
        alloytune.tune(TABLE, str(bert), recipe, output=tmp_path / "run", split=SPLIT)
    for saved in (tmp_path / "run/stages/01-full").glob("progress-*"):
        assert all(torch.isfinite(weight).all() for weight in load_file(saved / "weights.safetensors").values())
    assert not (tmp_path / "run/stages/01-full/checkpoint").exists()


def test_outputs_that_are_no_numbers_stop_the_run(bert: Path, tmp_path: Path) -> None:
    lora = {"attach": {"lora": {"rank": 2, "alpha": 1e38}}, "until": {"updates": 2}, "warmup": 0}
    with pytest.raises(alloytune.NotFiniteError, match="lower rate"):
        alloytune.tune(
            TABLE,
            str(bert),
            {"batch": 8, "stages": [stage("lora", "adapter", **lora, clip=1e-30)]},
            output=tmp_path / "run",
            split=SPLIT,
        )
    assert not (tmp_path / "run/stages/01-lora/result.json").exists()


@pytest.mark.slow
def test_a_full_disk_stops_with_one_line_and_the_run_goes_on_later(bert: Path, tmp_path: Path) -> None:
    TABLE.write_csv(tmp_path / "table.csv")
    words = f"{sys.executable} -m alloytune"
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
