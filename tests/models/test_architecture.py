"""A model that is changed before it is trained: layers, dropout, tokens; and saved so that others load it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EuroBertConfig, EuroBertForMaskedLM

import alloytune
import tiny
from alloytune.errors import InputError
from alloytune.models.architecture import Architecture, add_tokens
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.roles import find_roles
from alloytune.models.weights import named_weights
from architectures import ARCHITECTURES, PLAIN
from tiny import TASK


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "gemma3", "modernbert", "t5", "bart"])
def test_fewer_layers_are_the_lowest(family: str, tmp_path: Path) -> None:
    source = str(ARCHITECTURES[family].save(tmp_path))
    tokenizer = load_tokenizer(source)
    whole, _ = load_model(TASK.auto_class, source, tokenizer, 0, **TASK.config)
    short, _ = load_model(TASK.auto_class, source, tokenizer, 0, Architecture(layers=1, dropout=0.3), **TASK.config)
    stacks = [len(find_roles(model).stacks["layers"]) for model in (whole, short)]
    assert stacks[0] == 2 * stacks[1]
    before, after = named_weights(whole), named_weights(short)
    body = find_roles(short).stacks["layers"]
    names = [name for layer in body for name in layer]
    assert names
    for name in names:
        assert torch.equal(before[name], after[name])
    assert any(getattr(module, "p", 0.0) == 0.3 for module in short.modules()) or family in ("gemma3", "modernbert")


def test_new_tokens_start_at_the_mean(bert: Path) -> None:
    tokenizer = load_tokenizer(str(bert), ["<url>", "<user>"])
    architecture = Architecture(tokens=("<url>", "<user>"))
    model, _ = load_model(TASK.auto_class, str(bert), tokenizer, 0, architecture, **TASK.config)
    table = model.get_input_embeddings().weight
    assert len(table) == len(tokenizer) == len(tiny.WORDS) + 2
    for row in table[-2:]:
        assert torch.allclose(row, table[:-2].mean(dim=0))
    assert tokenizer("a <url> film").input_ids[2] == len(tiny.WORDS)


def save_eurobert(folder: Path) -> Path:
    config = EuroBertConfig(**PLAIN)
    EuroBertForMaskedLM(config).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["modernbert", "eurobert"])
def test_the_saved_head_reads_what_the_recipe_says(family: str, pooling: str, tmp_path: Path) -> None:
    source = save_eurobert(tmp_path / "own") if family == "eurobert" else ARCHITECTURES[family].save(tmp_path / "own")
    recipe = {
        "architecture": {"pooling": pooling},
        "batch": 8,
        "max_length": 24,
        "stages": [{"name": "full", "train": "all", "rate": 1e-3, "until": {"updates": 2}}],
    }
    tuned = alloytune.tune(tiny.make_table(60), str(source), recipe, output=tmp_path / "run")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").eval()
    batch = tuned.tokenizer(["a good film", "it was that one weak plot"], padding=True, return_tensors="pt")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    read = []
    first = next(module for name, module in plain.named_children() if name in ("head", "dense"))
    first.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.inference_mode():
        logits = plain(**inputs).logits
        states = plain.base_model(**inputs).last_hidden_state
    parts = inputs["attention_mask"].unsqueeze(-1)
    wanted = states[:, 0] if pooling == "cls" else (states * parts).sum(dim=1) / parts.sum(dim=1)
    assert torch.allclose(read[0], wanted, atol=1e-5)
    own = tuned.predict(["a good film", "it was that one weak plot"])["probability_good"]
    assert logits.softmax(dim=1)[:, 1].tolist() == pytest.approx(own.to_list(), abs=1e-5)


def test_what_cannot_be_changed_is_refused(bert: Path, llama: Path) -> None:
    with pytest.raises(InputError, match=r"architecture\.pooling: the class of bert models has no choice"):
        load_model(TASK.auto_class, str(bert), load_tokenizer(str(bert)), 0, Architecture(pooling="mean"))
    with pytest.raises(InputError, match=r"architecture\.layers: the model has 2, fewer than 7; give at most 2"):
        load_model(TASK.auto_class, str(bert), load_tokenizer(str(bert)), 0, Architecture(layers=7), **TASK.config)
    with pytest.raises(InputError, match="'film' is a token already"):
        add_tokens(load_tokenizer(str(bert)), ["film"])


def test_a_changed_model_is_saved_with_its_base(bert: Path, tmp_path: Path) -> None:
    recipe = {
        "architecture": {"layers": 1, "dropout": "20%", "tokens": ["<url>"]},
        "batch": 8,
        "stages": [
            {"name": "lora", "attach": {"lora": {"rank": 2}}, "train": "adapter | head", "until": {"updates": 2}},
        ],
    }
    tuned = alloytune.tune(tiny.make_table(60), str(bert), recipe, output=tmp_path / "run")
    assert tuned.results["saved"] == ["adapter", "base", "model"]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model")
    assert (plain.config.num_hidden_layers, plain.config.hidden_dropout_prob) == (1, 0.2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert plain.get_input_embeddings().num_embeddings == len(tokenizer) == len(tiny.WORDS) + 1
    assert tuned.predict("a <url> film").height == 1
