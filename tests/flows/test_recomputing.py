"""`activation_checkpointing`: the same result in less memory, with frozen layers kept; refused where it cannot be."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from alloytune import run
from alloytune.build.data import build_data_settings
from alloytune.build.pace import in_training_form
from alloytune.build.session import build_session
from alloytune.data.prepare import prepare
from alloytune.errors import InputError
from alloytune.models.unpadded import MULTIPLE
from alloytune.models.weights import free_only, named_weights
from alloytune.recipe.read import ReadRecipe, read_recipe
from alloytune.train.tensor_memory import count_activations
from alloytune.watch import Watcher

STAGES = """
stages:
  - {name: full, train: all, rate: 1e-3, until: {updates: 4}, dropout: DROPOUT, keep: last}
  - {name: top, attach: {lora: {rank: 2}}, train: "adapter.layers[-1:] | head", rate: 1e-3, until: {epochs: 2},
     dropout: DROPOUT, keep: last}
"""


def recipe(folder: Path, model: Path, *, recomputes: bool, dropout: float = 0.0) -> ReadRecipe:
    tiny.make_table(60).write_csv(folder / "table.csv")
    file = folder / f"{recomputes}.yaml"
    head = f"model: {model}\ndata: {{train: {folder}/table.csv, split: {{validation: 20%, test: 20%}}}}\nbatch: 8\n"
    file.write_text(
        head
        + f"precision: float32\nactivation_checkpointing: {str(recomputes).lower()}"
        + STAGES.replace("DROPOUT", str(dropout))
    )
    return read_recipe(str(file))


@pytest.fixture(params=["bert", "llama"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return {"bert": tiny.save_bert, "llama": tiny.save_llama}[request.param](tmp_path / "model")


def test_the_result_is_the_same(tmp_path: Path, model: Path) -> None:
    saved = []
    for recomputes in (True, False):
        output = tmp_path / f"run-{recomputes}"
        run.start(recipe(tmp_path, model, recomputes=recomputes), output, Watcher())
        saved.append(load_file(output / "model" / "model.safetensors"))
    for name, weight in saved[0].items():
        torch.testing.assert_close(weight, saved[1][name], rtol=0, atol=2e-5)


def test_less_is_kept_for_the_same_gradient_under_dropout(tmp_path: Path, model: Path) -> None:
    kept, gradients = [], []
    for recomputes in (True, False):
        read = recipe(tmp_path, model, recomputes=recomputes, dropout=0.3)
        session = build_session(read.recipe, prepare(build_data_settings(read.recipe)))
        its_model, loss = session.state.model, session.task.summed_loss
        free_only(its_model, frozenset(named_weights(its_model)))
        batch = session.task.collate(session.examples["train"], session.tokenizer)
        assert batch.num_tokens + MULTIPLE < batch.inputs["input_ids"].numel(), "padding is taken out"
        its_model.train()
        with in_training_form(session, 0):
            kept.append(count_activations(its_model, [batch], loss, session.machine))
            its_model.zero_grad()
            torch.manual_seed(0)
            loss(its_model, batch).backward()
        gradients.append({name: w.grad for name, w in named_weights(its_model).items() if w.grad is not None})
    assert kept[0] < 0.8 * kept[1]
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_is_refused(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.BertPreTrainedModel.supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match=r"activation_checkpointing: the layers of Bert.*micro_batch"):
        run.start(recipe(tmp_path, bert, recomputes=True), tmp_path / "run", Watcher())
