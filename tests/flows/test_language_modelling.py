"""Language modelling: what is masked, how it is passed, resumed and refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import tiny
from alloytune import run
from alloytune.build.data import build_data_settings
from alloytune.build.plan import build_updates
from alloytune.build.session import Session, build_session
from alloytune.data.prepare import prepare
from alloytune.errors import InputError
from alloytune.models.weights import named_weights
from alloytune.recipe.read import read_recipe, recipe_from
from alloytune.tasks.language_modelling import LanguageModelling
from alloytune.tasks.masking import IGNORED
from alloytune.tasks.objectives import Objective
from alloytune.train.loop import add_gradients
from alloytune.watch import Watcher
from architectures import ARCHITECTURES
from flows.test_pace import carry_out_stages
from flows.test_resume import weights

TEXTS = tiny.make_table(120).select("text")


def make_session(model: Path, task: Any = "language_modelling", **settings: Any) -> Session:
    recipe = recipe_from(
        {
            "model": str(model),
            "task": task,
            "batch": 16,
            "stages": [{"name": "full", "train": "all", "rate": 1e-3, "dropout": 0.0}],
            **settings,
        }
    )
    return build_session(recipe, prepare(build_data_settings(recipe), TEXTS))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"), dropout=0.0)


@pytest.mark.parametrize("kind", ["masked", "next"])
def test_the_loss_is_that_of_transformers(bert: Path, tmp_path: Path, kind: str) -> None:
    session = make_session(bert if kind == "masked" else tiny.save_gpt2(tmp_path))
    assert session.task.learned == {"objective": kind}
    batch = session.task.collate(session.examples["train"][:7], session.tokenizer)
    model = session.state.model.eval()
    labels = batch.targets
    if kind == "next":  # transformers shifts them itself
        labels = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, IGNORED)
    expected = model(**batch.inputs, labels=labels).loss.detach()
    found = session.task.summed_loss(model, batch).detach() / batch.num_targets
    torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        answers = np.stack(session.task.answers(model, batch, session.tokenizer))
    assert session.task.values(answers)["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_every_epoch_masks_other_tokens_however_it_is_batched(bert: Path) -> None:
    one, other = (build_updates(make_session(bert, micro_batch=size), 0, 0) for size in (16, 5))
    assert masked(one, 0) == masked(other, 0)
    assert masked(one, 0) != masked(one, one.per_epoch)
    assert all(sum(target != IGNORED for target in targets) >= 1 for targets in masked(one, 0).values())


def masked(updates: Any, done: int) -> dict[str, list[int]]:
    """Give what is to be foretold in an epoch, by row, padding left out."""
    found = {}
    for _, update in zip(range(updates.per_epoch), updates.after(done), strict=False):
        for batch in update:
            lengths = batch.inputs["attention_mask"].sum(1)
            found |= {
                row: targets[:n].tolist() for row, targets, n in zip(batch.rows, batch.targets, lengths, strict=True)
            }
    return found


def test_a_split_into_micro_batches_changes_nothing(bert: Path) -> None:
    found = []
    for size in (16, 5):
        session = make_session(bert, micro_batch=size)
        update = next(build_updates(session, 0, 0).after(0))
        loss = add_gradients(session.state.model.train(), update, session.task.summed_loss, session.machine.exact())
        found.append((loss, {name: weight.grad for name, weight in named_weights(session.state.model).items()}))
    (one, gradients), (other, others) = found
    assert one == pytest.approx(other, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_resumed_run_masks_the_same(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    TEXTS.write_csv("texts.csv")
    Path("recipe.yaml").write_text(
        f"model: {bert}\ntask: language_modelling\ndata: {{train: texts.csv}}\nbatch: 16\ncheckpoint: 2 updates\n"
        "stages:\n  - {name: only, train: all, rate: 5e-3, until: {epochs: 3}}\n"
    )
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    carry_out_stages(Path("recipe.yaml"), alone)
    for update in (9, None):
        carry_out_stages(Path("recipe.yaml"), stopped, update)
    assert weights(alone) == weights(stopped)


ADAPTED = """
model: {model}
task: language_modelling
data: {{train: texts.csv}}
batch: 16
checkpoint: 2 updates
stages:
  - {{name: adapter, attach: {{{adapter}}}, train: adapter | head, rate: 1e-2, until: {{updates: 4}}}}
"""
OTHERS = ("roberta", "albert", "deberta-v2", "mpnet", "distilbert", "modernbert")


@pytest.mark.parametrize("family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_an_adapter_is_saved_with_a_head_that_shares_the_embeddings(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    TEXTS.write_csv("texts.csv")
    source = ARCHITECTURES[family].save(tmp_path / "source")
    Path("recipe.yaml").write_text(ADAPTED.format(model=source, adapter="lora: {rank: 2}"))
    alone = run.start(read_recipe("recipe.yaml"), tmp_path / "alone", Watcher()).path
    carry_out_stages(Path("recipe.yaml"), tmp_path / "stopped", 3)
    stopped = run.resume(tmp_path / "stopped", Watcher()).path
    assert weights(alone) == weights(stopped)
    found = json.loads((alone / "results.json").read_text())["reload_difference"]
    assert found.keys() == {"model", "adapter"}
    assert max(found.values()) < 1e-5

    Path("more.yaml").write_text(ADAPTED.format(model=source, adapter=f"folder: {alone / 'adapter'}"))
    carry_out_stages(Path("more.yaml"), tmp_path / "more")


def test_what_a_model_cannot_do_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not made to foretell next"):
        make_session(bert, {"language_modelling": {"objective": "next"}})
    unmasked = tiny.save_bert(tmp_path)
    tokenizer = tiny.make_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(unmasked)
    with pytest.raises(InputError, match="no mask token"):
        make_session(unmasked)


def test_texts_without_words_are_left_out_by_name(bert: Path) -> None:
    session = make_session(bert)
    table = pl.DataFrame({"text": ["one good plot", "[SEP] [CLS]"]})
    encoded = session.task.encode(table, session.tokenizer, None)
    assert [example.row for example in encoded.examples] == ["1"]
    assert encoded.left_out == (("2", "no token to foretell"),)


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_all_of_a_long_text_is_learned(objective: Objective) -> None:
    tokenizer = tiny.make_tokenizer()
    words = [str(number) for number in range(10)]
    texts = pl.DataFrame({"row": ["a", "b"], "text": [" ".join(words), "film"]})
    task = replace(LanguageModelling.blank(), objective=objective)
    (first, last), (*pieces, short) = (
        encode(texts, tokenizer, 6).examples for encode in (task.encode, task.encode_in_pieces)
    )
    assert [example.row for example in (*pieces, short)] == ["a", "a", "a", "b"]
    assert short == last
    assert [example.num_tokens for example in pieces] == [6, 6, 4]
    assert pieces[0] == first
    assert task.encode_in_pieces(texts, tokenizer, 6).notes
    if objective == "next":
        read = [tokenizer.decode(example.inputs["input_ids"], skip_special_tokens=True) for example in pieces]
        assert " ".join(read).split() == words
