"""Loading: what the head starts from, how long a text may be, and folders that are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PegasusConfig,
    PegasusModel,
    PreTrainedModel,
)

import tiny
from alloytune.errors import InputError
from alloytune.models.architecture import Architecture
from alloytune.models.load import load_model, load_tokenizer, start_outputs, token_limit
from alloytune.models.source import fingerprint
from alloytune.tasks.classification import Classification
from alloytune.tasks.labels import label_config
from architectures import ARCHITECTURES

HEAD = {"classifier.weight", "classifier.bias"}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def load(folder: Path, labels: tuple[str, ...] = ("bad", "good"), seed: int = 0) -> tuple[PreTrainedModel, set[str]]:
    task = Classification(labels)
    model, fresh = load_model(task.auto_class, str(folder), load_tokenizer(str(folder)), seed, **task.config)
    return model, set(fresh)


def save_classifier(folder: Path, labels: tuple[str, ...]) -> Path:
    torch.manual_seed(2)
    names: dict[str, Any] = dict(enumerate(labels))
    config = BertConfig(**ARCHITECTURES["bert"].settings, num_labels=len(labels), id2label=names)
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


def same_head(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in HEAD | POOLER)


def edit_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_the_head_depends_on_the_seed_alone(bert: Path) -> None:
    first, fresh = load(bert)
    torch.rand(7)
    again, _ = load(bert)
    other, _ = load(bert, seed=1)
    assert fresh == HEAD | POOLER
    assert same_head(first, again)
    assert not torch.equal(first.state_dict()["classifier.weight"], other.state_dict()["classifier.weight"])


def test_a_head_for_the_same_labels_is_kept(tmp_path: Path) -> None:
    source = save_classifier(tmp_path, ("bad", "good"))
    model, fresh = load(source)
    assert not fresh
    assert same_head(model, BertForSequenceClassification.from_pretrained(source))


def test_a_head_whose_labels_have_no_names_is_kept(tmp_path: Path) -> None:
    source = save_classifier(tmp_path, ("LABEL_0", "LABEL_1"))
    assert not load(source)[1]


@pytest.mark.parametrize("labels", [("bad", "good", "middling"), ("good", "bad"), ("no", "yes")])
def test_a_head_for_other_labels_is_made_anew(tmp_path: Path, labels: tuple[str, ...]) -> None:
    source = save_classifier(tmp_path, labels)
    before = BertForSequenceClassification.from_pretrained(source).state_dict()
    model, fresh = load(source)
    again, _ = load(source)
    other, _ = load(source, seed=1)
    assert fresh == HEAD
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.state_dict()["classifier.weight"].shape == (2, tiny.WIDTH)
    assert torch.equal(model.state_dict()["bert.pooler.dense.weight"], before["bert.pooler.dense.weight"])
    assert not torch.equal(model.state_dict()["classifier.weight"], before["classifier.weight"][:2])
    assert not torch.equal(model.state_dict()["classifier.weight"], other.state_dict()["classifier.weight"])
    assert same_head(model, again)


@pytest.mark.parametrize(
    ("name", "tokens"), [("bert", 32), ("roberta", 32), ("mpnet", 32), ("opt", 32), ("bart", 32), ("t5", None)]
)
def test_the_longest_text_that_a_model_reads(tmp_path: Path, name: str, tokens: int | None) -> None:
    folder = ARCHITECTURES[name].save(tmp_path)
    model, _ = load(folder)
    tokenizer = load_tokenizer(str(folder))
    assert token_limit(model, tokenizer, None) == tokens
    text = " ".join(tiny.PLAIN * 4)
    encoded = tokenizer(text, truncation=True, max_length=tokens or 50, return_tensors="pt")
    assert encoded["input_ids"].shape[1] == (tokens or 50)
    assert torch.isfinite(model(**encoded).logits).all()


def test_more_tokens_than_the_model_reads_are_refused(bert: Path) -> None:
    model, _ = load(bert)
    with pytest.raises(InputError, match="give at most 32"):
        token_limit(model, load_tokenizer(str(bert)), 33)


def test_padding_is_the_tokenizers(llama: Path) -> None:
    model, _ = load(llama)
    assert model.config.pad_token_id == load_tokenizer(str(llama)).pad_token_id == 3


def test_a_tokenizer_larger_than_the_model(bert: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "model"))
    tokenizer = load_tokenizer(str(source))
    tokenizer.add_tokens(["sesquipedalian", "antediluvian"])
    tokenizer.save_pretrained(source)
    refusal = f"has {len(tiny.WORDS) + 2} tokens, the model embeds only {len(tiny.WORDS)}"
    with pytest.raises(InputError, match=refusal):
        load(source)
    more = ("<url>",)  # which get embeddings, the two do not
    with pytest.raises(InputError, match=refusal):
        load_model(tiny.TASK.auto_class, str(source), load_tokenizer(str(source), more), 0, Architecture(tokens=more))


def plant_code(source: Path) -> Path:
    """Put Python files into a model's folder that leave a trace when they are run."""
    trace = source / "it_ran"
    code = f"open({str(trace)!r}, 'w').close()\n"
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (source / f"{name}.py").write_text(code)
    edit_config(
        source,
        auto_map={
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForSequenceClassification": "modeling_own.OwnModel",
        },
    )
    file = source / "tokenizer_config.json"
    owned = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | owned))
    return trace


def test_code_beside_a_known_architecture_is_left_alone(bert: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "model"))
    trace = plant_code(source)
    model, _ = load(source)
    model.save_pretrained(tmp_path / "saved")
    load_tokenizer(str(source)).save_pretrained(tmp_path / "saved")
    assert type(model) is BertForSequenceClassification
    assert not trace.exists()
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "saved" / name).read_text())
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_an_architecture_that_needs_code_of_its_own_is_refused(bert: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "model"))
    trace = plant_code(source)
    edit_config(source, model_type="own")
    with pytest.raises(InputError, match="needs code of its own, which Alloytune does not run") as refused:
        load(source)
    assert len(str(refused.value).splitlines()) == 1
    assert not trace.exists()


def test_a_model_without_a_class_for_the_task(tmp_path: Path) -> None:
    settings = ARCHITECTURES["bart"].settings
    PegasusModel(PegasusConfig(**settings)).save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no head for this task in transformers; choose another model") as refused:
        load(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_files_that_lack_a_layer(bert: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "model"))
    weights = load_file(source / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layer.1." not in name}
    save_file(kept, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lack 16 pretrained weights"):
        load(source)


def test_files_of_another_size_than_the_config_says(bert: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "model"))
    edit_config(source, intermediate_size=48)
    with pytest.raises(InputError, match="in another shape"):
        load(source)


def test_a_folder_without_a_tokenizer(bert: Path, tmp_path: Path) -> None:
    """transformers makes one without a word for it, to which every text is the same."""
    source = Path(shutil.copytree(bert, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*", "vocab*")))
    with pytest.raises(InputError, match="no tokenizer, or one without words"):
        load(source)


def test_a_weight_file_cut_short(bert: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "model"))
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be loaded"):
        load(source)


def test_the_fingerprint_of_a_hub_model_is_its_commit(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {"a" * 40, "b" * 40}
    for commit in commits:
        shutil.copytree(bert, tmp_path / "models--org--name/snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--name/refs").mkdir()
    for commit in commits:
        (tmp_path / "models--org--name/refs/main").write_text(commit)
        assert fingerprint("org/name") == commit
    assert fingerprint("org/other") is None
    assert fingerprint(str(bert)) == fingerprint(str(tmp_path / "models--org--name/snapshots" / commit))


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_fresh_head_begins_with_what_it_is_told(family: str, tmp_path: Path) -> None:
    source = str(ARCHITECTURES[family].save(tmp_path))
    labels = label_config([str(number) for number in range(tiny.WIDTH)])  # as many as the head is wide
    model, fresh = load_model(AutoModelForSequenceClassification, source, load_tokenizer(source), 0, **labels)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    start_outputs(model, fresh, [float(number) for number in range(tiny.WIDTH)])
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    outputs = {"bert": {"classifier.bias"}, "roberta": {"classifier.out_proj.bias"}, "llama": set()}
    assert changed == outputs[family]
