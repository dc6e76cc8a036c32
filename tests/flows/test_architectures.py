"""Every architecture with a classification head in transformers: tunes in three stages, saves, and loads elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, DebertaConfig, DebertaModel, pipeline

import alloytune
import tiny
from alloytune import machine
from alloytune.models.roles import find_roles
from alloytune.models.weights import named_weights
from architectures import ARCHITECTURES

TABLE = tiny.make_table(80)
TEXTS = TABLE["text"].head(8).to_list()
ALWAYS = {"roberta", "gpt2", "t5"}  # positions from behind the padding; no padding token, fused layers; two sides
EPOCH = {"epochs": 1}


def recipe(adapter: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": 5,
        "batch": 8,
        "data": {"split": {"validation": "20%", "test": "20%"}},
        "stages": [
            {"name": "full", "train": "all", "rate": 3e-3, "until": EPOCH},
            {"name": "partial", "train": "layers[-1:] | head", "rate": 3e-3, "until": EPOCH},
            {"name": "adapter", "attach": adapter, "train": "adapter | head", "rate": 1e-2, "until": EPOCH},
        ],
    }


def tune(name: str, folder: Path, adapter: dict[str, Any]) -> alloytune.Tuned:
    model = ARCHITECTURES[name].save(folder / "pretrained")
    return alloytune.tune(TABLE, model=str(model), recipe=recipe(adapter), output=folder / "run")


def assert_frozen_weights_stayed(run: Path) -> None:
    """Compare what the adapter sits on with what the stage before the adapter left, bit by bit."""
    base = AutoModelForSequenceClassification.from_pretrained(run / "base")
    weights = named_weights(base)
    before = load_file(run / "stages/02-partial/checkpoint/weights.safetensors")
    after_first = load_file(run / "stages/01-full/checkpoint/weights.safetensors")
    saved = {name.removeprefix("base_model.model.") for name in load_file(run / "adapter/adapter_model.safetensors")}
    head = saved & weights.keys()  # with a pooler that was not pretrained
    assert head >= find_roles(base).members["head"]
    assert before.keys() == weights.keys()
    assert [name for name in weights.keys() - head if not torch.equal(weights[name], before[name])] == []
    assert any(not torch.equal(weights[name], before[name]) for name in head)
    assert any(not torch.equal(before[name], after_first[name]) for name in find_roles(base).stacks["layers"][-1])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_three_stages(name: str, tmp_path: Path) -> None:
    tuned = tune(name, tmp_path, {"lora": {"rank": 2, "on": "attention | mlp"}})
    assert tuned.results["saved"] == ["adapter", "base", "model"]
    assert set(tuned.results["reload_difference"]) == {"model", "adapter"}
    assert max(tuned.results["reload_difference"].values()) < 1e-5
    assert_frozen_weights_stayed(tmp_path / "run")

    predicted = tuned.predict(TEXTS)
    plain = pipeline("text-classification", model=str(tmp_path / "run/model"), top_k=None)
    for row, answer in zip(predicted.iter_rows(named=True), plain(TEXTS), strict=True):
        for chance in answer:
            assert row[f"probability_{chance['label']}"] == pytest.approx(chance["score"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deberta-v2", "gpt2", "llama"])
def test_bottleneck_adapters(name: str, tmp_path: Path) -> None:
    tuned = tune(name, tmp_path, {"bottleneck": {"reduction": 4, "on": "attention | mlp"}})
    assert tuned.results["saved"] == ["adapter", "base"]
    assert tuned.results["reload_difference"]["adapter"] < 1e-5
    assert_frozen_weights_stayed(tmp_path / "run")


def test_a_pair_of_texts_on_a_classifier_for_other_labels(tmp_path: Path) -> None:
    source = ARCHITECTURES["bert"].save(tmp_path / "pretrained")
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3, id2label=names)
    model.save_pretrained(source)
    table = TABLE.with_columns(text_pair=TABLE["text"].reverse())
    stages = recipe({"lora": {"rank": 2}})["stages"][2:]
    tuned = alloytune.tune(
        table, model=str(source), recipe=recipe({}) | {"stages": stages}, output=tmp_path / "run", text_pair="text_pair"
    )
    assert tuned.results["saved"] == ["adapter", "model"]
    pairs = table["text_pair"].head(8).to_list()
    predicted = tuned.predict(TEXTS, pairs)
    assert predicted["probability_good"].to_list() != tuned.predict(TEXTS, pairs[::-1])["probability_good"].to_list()
    plain = pipeline("text-classification", model=str(tmp_path / "run/model"), top_k=None)
    for row, text, pair in zip(predicted.iter_rows(named=True), TEXTS, pairs, strict=True):
        for chance in plain({"text": text, "text_pair": pair}):
            assert row[f"probability_{chance['label']}"] == pytest.approx(chance["score"], abs=1e-5)


def test_a_model_that_cannot_do_with_bfloat16_takes_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_has_fast_bfloat16", lambda device: True)
    config = DebertaConfig(
        vocab_size=len(tiny.WORDS),
        hidden_size=tiny.WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * tiny.WIDTH,
        pos_att_type=["c2p", "p2c"],
        relative_attention=True,
    )
    DebertaModel(config).save_pretrained(tmp_path / "deberta")
    tiny.make_tokenizer().save_pretrained(tmp_path / "deberta")
    recipe = {"batch": 8, "stages": [{"name": "full", "train": "all", "rate": 1e-3, "until": {"updates": 2}}]}
    tuned = alloytune.tune(tiny.make_table(40), str(tmp_path / "deberta"), recipe, output=tmp_path / "run")
    assert tuned.results["precision"] == "float32"
