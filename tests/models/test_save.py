"""What is saved loads elsewhere; what is damaged is noticed; a full disk leaves what was there."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import tiny
from alloytune.errors import SaveError, VerificationError
from alloytune.models import verify
from alloytune.models.adapters import Attachment
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.methods import BottleneckSettings, LoraSettings, Method
from alloytune.models.save import Places, save_tuned
from alloytune.models.state import ModelState
from alloytune.models.weights import named_weights
from alloytune.selection import resolve
from alloytune.tasks.task import Batch
from full_disk import full_disk
from tiny import TASK

LORA = LoraSettings(rank=2, alpha=4, dropout=0.0)
BOTTLENECK = BottleneckSettings(reduction=4, activation="relu", placement="sequential", dropout=0.0)
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


class Saved:
    """A model whose chosen weights were moved at random, saved, with its outputs."""

    def __init__(
        self, folder: Path, source: Path, settings: Method | None, moved: str, on: str = "attention | mlp"
    ) -> None:
        self.tokenizer = load_tokenizer(str(source))
        model, fresh = load_model(TASK.auto_class, str(source), self.tokenizer, 0, **TASK.config)
        self.state, self.source = ModelState(model.eval(), fresh), str(source)
        if settings:
            names = resolve(on, self.state.roles(), "on")
            self.state.attach(Attachment("own", settings, names, 1), "attach")
        self.move(moved)
        self.expected = self.outputs(model)
        self.places = Places(self.source, folder / "model", folder / "adapter", folder / "base")
        self.attachments = self.state.attachments
        self.written = save_tuned(self.state, self.tokenizer, self.places, lambda library: f"for {library}\n")

    def move(self, selection: str) -> None:
        names = resolve(selection, self.state.roles(), "train")
        with torch.no_grad():
            for name, weight in named_weights(self.state.model).items():
                if name in names:
                    weight.add_(0.2 * torch.randn(weight.shape))
        self.state.touched |= names

    @property
    def batch(self) -> Batch:
        examples = TASK.encode(tiny.make_table(12), self.tokenizer, 32).examples
        return TASK.collate(examples, self.tokenizer)

    @torch.inference_mode()
    def outputs(self, model: Any) -> np.ndarray:
        return TASK.outputs(model.eval(), self.batch).numpy()

    def verify(self) -> dict[str, float]:
        folders = {name: folder for name in self.written if (folder := getattr(self.places, name)).exists()}
        inputs = {key: value.tolist() for key, value in self.batch.inputs.items()}
        names = [attachment.name for attachment in self.attachments]
        with verify.fresh_process() as load:
            return verify.verify_saved(load, folders, names, self.source, inputs, self.expected, TASK.config)


def test_a_whole_model(tmp_path: Path, bert: Path) -> None:
    saved = Saved(tmp_path, bert, None, "all")
    assert saved.written == {"model": True, "adapter": False, "base": False}
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert np.array_equal(saved.outputs(again), saved.expected)
    assert (tmp_path / "model/README.md").read_text().startswith("for transformers\n")
    for file in ("config.json", "tokenizer_config.json"):
        assert str(bert) not in (tmp_path / "model" / file).read_text()


def test_an_adapter_on_the_pretrained_model(tmp_path: Path, bert: Path) -> None:
    saved = Saved(tmp_path, bert, LORA, "adapter | head")
    assert saved.written == {"model": True, "adapter": True, "base": False}
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bert)
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    assert np.allclose(saved.outputs(PeftModel.from_pretrained(base, tmp_path / "adapter")), saved.expected, atol=1e-6)
    own = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=2)
    assert np.allclose(saved.outputs(own), saved.expected, atol=1e-6)


@pytest.mark.parametrize("settings", [LORA, BOTTLENECK], ids=["lora", "bottleneck"])
def test_an_adapter_and_its_base_move_together(
    tmp_path: Path, bert: Path, settings: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Saved(tmp_path / "run", bert, settings, "all | adapter")
    assert saved.written == {"model": settings.mergeable, "adapter": True, "base": True}
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert str(tmp_path) not in (moved / "adapter/adapter_config.json").read_text()
    assert str(tmp_path) not in (moved / "adapter/README.md").read_text()
    monkeypatch.chdir(moved)
    own = AutoPeftModelForSequenceClassification.from_pretrained("adapter")
    assert np.allclose(saved.outputs(own), saved.expected, atol=1e-6)


def test_the_card_of_an_adapter_says_how_to_load_it(tmp_path: Path, gpt2: Path) -> None:
    saved = Saved(tmp_path, gpt2, LORA, "adapter | head")
    card = (tmp_path / "adapter/README.md").read_text()
    assert card.startswith("for peft\n")
    code = card.partition("```python\n")[2].partition("```")[0].replace("./adapter", str(tmp_path / "adapter"))
    names: dict[str, Any] = {}
    exec(code, names)
    assert np.allclose(saved.outputs(names["model"]), saved.expected, atol=1e-6)
    assert names["tokenizer"]("a fine film").input_ids == load_tokenizer(str(gpt2))("a fine film").input_ids


def test_a_hub_model_is_named_by_its_id(tmp_path: Path, state: ModelState, bert: Path) -> None:
    state.attach(Attachment("own", LORA, resolve("attention", state.roles(), "on"), 1), "attach")
    places = Places("google/bert", tmp_path / "model", tmp_path / "adapter", tmp_path / "base")
    save_tuned(state, load_tokenizer(str(bert)), places, lambda library: "")
    for file in ("adapter_config.json", "README.md", "tokenizer_config.json"):
        assert str(bert) not in (tmp_path / "adapter" / file).read_text()
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "google/bert"


def test_a_pooler_that_was_not_pretrained_is_of_the_head(state: ModelState) -> None:
    assert state.head == POOLER | {"classifier.weight", "classifier.bias"}
    assert resolve("head", state.roles(), "train") == state.head
    assert not state.base_moved


def test_an_adapter_on_everything_leaves_the_head_whole(tmp_path: Path, bert: Path) -> None:
    saved = Saved(tmp_path, bert, LORA, "adapter | head", on="all")
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    assert np.allclose(saved.outputs(PeftModel.from_pretrained(base, tmp_path / "adapter")), saved.expected, atol=1e-6)


def test_saving_leaves_the_model_as_it_was(tmp_path: Path, bert: Path) -> None:
    saved = Saved(tmp_path, bert, BOTTLENECK, "all | adapter")
    assert np.array_equal(saved.outputs(saved.state.model), saved.expected)


@pytest.mark.slow
def test_a_source_with_three_labels_and_no_padding_token(tmp_path: Path, llama: Path) -> None:
    source = tmp_path / "source"
    AutoModelForSequenceClassification.from_pretrained(llama, num_labels=3).save_pretrained(source)
    tiny.make_tokenizer(padding=False).save_pretrained(source)
    saved = Saved(tmp_path, source, LORA, "adapter | head")
    differences = saved.verify()
    assert differences.keys() == {"model", "adapter"}
    assert max(differences.values()) < 1e-5


def test_a_weight_altered_after_saving_is_noticed(tmp_path: Path, bert: Path) -> None:
    saved = Saved(tmp_path, bert, None, "head")
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    weights["bert.encoder.layer.0.output.dense.bias"][0] += 10
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(VerificationError, match=r"model: loaded again, its outputs differ by .* do not use it"):
        saved.verify()


def test_a_missing_file_is_noticed(tmp_path: Path, bert: Path) -> None:
    saved = Saved(tmp_path, bert, None, "head")
    (tmp_path / "model/model.safetensors").unlink()
    with pytest.raises(VerificationError, match=r"does not load again \(.*/model: OSError") as missing:
        saved.verify()
    assert len(str(missing.value).splitlines()) == 1


@pytest.mark.parametrize("settings", [None, LORA], ids=["whole", "adapter"])
def test_a_full_disk_leaves_the_earlier_model(tmp_path: Path, bert: Path, settings: Method | None) -> None:
    saved = Saved(tmp_path, bert, settings, "adapter | head" if settings else "all")
    before = {file: file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file()}
    saved.state.touched |= saved.state.roles().members["all"]
    with full_disk(), pytest.raises(SaveError, match="make room"):
        save_tuned(saved.state, saved.tokenizer, saved.places, lambda library: "another card")
    assert {file: file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file()} == before


@pytest.mark.new_interpreter
def test_a_process_that_is_not_needed_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the run fails before anything is saved."""
    started: list[subprocess.Popen[str]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    def fail() -> None:
        with verify.fresh_process():
            assert started[0].poll() is None
            raise SaveError("the disk is full")

    monkeypatch.setattr(subprocess, "Popen", Noted)
    with pytest.raises(SaveError):
        fail()
    assert started[0].poll() is not None
