"""Embedding, through whole runs: what a batch is does not depend on how it is passed, and what is saved loads."""

import json
import random
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import alloytune
import tiny
from alloytune import run, use
from alloytune.build.data import build_data_settings
from alloytune.build.plan import build_updates
from alloytune.build.session import Session, build_session
from alloytune.data.prepare import prepare
from alloytune.errors import InputError, RecipeError
from alloytune.machine import find_machine
from alloytune.models.weights import named_weights
from alloytune.recipe.read import read_recipe, recipe_from
from alloytune.tasks.embedding import Embedding
from alloytune.tasks.pooling import Pooling, write_sentence_files
from alloytune.train.loop import add_gradients
from alloytune.watch import Watcher


def make_pairs(rows: int, seed: int = 0) -> pl.DataFrame:
    """Make queries that name two numbers, documents that name them in a sentence, and wrong documents."""
    draw = random.Random(seed)
    found = []
    for one, other in draw.sample(list(combinations(range(60), 2)), rows):
        query = f"{one} {draw.choice(tiny.PLAIN)} {other}"
        document = " ".join([*draw.choices(tiny.PLAIN, k=4), str(other), "and", str(one)])
        wrong = [" ".join([*draw.choices(tiny.PLAIN, k=3), str(one), str(draw.randrange(60))]) for _ in range(2)]
        found.append({"query": query, "document": document, "negative": json.dumps(wrong[: draw.randint(0, 2)])})
    return pl.DataFrame(found)


def make_session(model: Path, **settings: Any) -> Session:
    recipe = recipe_from(
        {
            "model": str(model),
            "task": "embedding",
            "data": {"negative": "negative", "near_duplicates": False},
            "batch": 16,
            "stages": [{"name": "full", "train": "all", "rate": 1e-3, "dropout": 0.0}],
            **settings,
        }
    )
    return build_session(recipe, prepare(build_data_settings(recipe), make_pairs(120)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"), dropout=0.0)


def gradients(session: Session) -> dict[str, torch.Tensor]:
    model = session.state.model.train()
    update = next(build_updates(session, 0, 0).after(0))
    add_gradients(model, update, session.task.summed_loss, find_machine("float32"))
    return {name: weight.grad for name, weight in named_weights(model).items() if weight.grad is not None}


@pytest.mark.parametrize("side", ["right", "left"])
def test_how_many_go_through_the_model_together_changes_nothing(tmp_path: Path, side: str) -> None:
    model = tiny.save_bert(tmp_path, dropout=0.0)
    tiny.make_tokenizer(padding_side=side).save_pretrained(model)
    whole, parts = (gradients(make_session(model, micro_batch=size)) for size in (None, 5))
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_dropout_is_the_same_in_both_passes(tmp_path: Path) -> None:
    session = make_session(tiny.save_bert(tmp_path, dropout=0.3), micro_batch=16)
    torch.manual_seed(0)
    passed_twice = gradients(session)
    session = make_session(tmp_path)
    torch.manual_seed(0)
    for name, gradient in gradients(session).items():
        torch.testing.assert_close(passed_twice[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_run_learns_to_find_and_what_it_saves_loads(bert: Path, tmp_path: Path) -> None:
    make_pairs(200).write_csv(tmp_path / "pairs.csv")
    recipe = {
        "model": str(bert),
        "task": {"embedding": {"query_prompt": "the ", "pooling": "mean"}},
        "data": {"train": str(tmp_path / "pairs.csv"), "near_duplicates": False},
        "batch": 32,
        "stages": [{"name": "full", "train": "all", "rate": 1e-2, "until": {"epochs": 8}, "evaluate": "4 epochs"}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    folder = run.start(read_recipe(str(tmp_path / "recipe.yaml")), tmp_path / "run", Watcher())
    results = folder.read("results.json")
    before, after = results["start"]["values"], results["test"]["values"]
    assert after["recall_at_1"] > before["recall_at_1"] + 0.2
    assert after["loss"] < before["loss"] / 2
    assert results["reload_difference"]["model"] < 1e-5
    tuned = use.load_tuned(folder.path)
    table = make_pairs(30, seed=1)
    assert tuned.evaluate_table(table)["values"]["loss"] < before["loss"]
    found = tuned.predict_table(table.select("query"))["embedding"].to_list()
    expected = embed_plainly(folder.model, ["the " + text for text in table["query"]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    prompts = json.loads((folder.model / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "the ", "document": ""}
    modules = json.loads((folder.model / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]


def test_recipes_that_train_a_head_as_well_do_without_one(bert: Path, tmp_path: Path) -> None:
    given = ["task=embedding", "data.near_duplicates=false", "stages.adapter.until={updates: 2}"]
    tuned = alloytune.tune(make_pairs(60), str(bert), "lora", output=tmp_path / "run", overrides=given)
    assert tuned.results["stages"][0]["decision"] == "kept"


def test_a_model_that_has_prompts_keeps_them(bert: Path, tmp_path: Path) -> None:
    source = shutil.copytree(bert, tmp_path / "bert")
    write_sentence_files(source, Pooling("cls"), tiny.WIDTH, None, {"query": "the ", "passage": "a "})
    own = make_session(source).task
    assert (own.query_prompt, own.document_prompt, own.pooling) == ("the ", "a ", "cls")
    given = make_session(source, task={"embedding": {"query_prompt": "", "pooling": "mean"}}).task
    assert (given.query_prompt, given.document_prompt, given.pooling) == ("", "a ", "mean")
    assert Embedding.recall({"temperature": 0.05, "query_prompt": None, "document_prompt": None}, own.learned) == own


def test_every_document_of_a_list_is_a_row() -> None:
    documents = [["one film", "two films"], ["a book"], []]
    queries = ["what is on", "what to read", "what else"]
    stages = [{"name": "full", "train": "all"}]
    recipe = recipe_from({"task": "embedding", "data": {"near_duplicates": False}, "stages": stages})
    rest = make_pairs(40).drop("negative")
    listed = pl.DataFrame({"query": queries, "document": [json.dumps(texts) for texts in documents]})
    found = prepare(build_data_settings(recipe), pl.concat([listed, rest]))
    rows = pl.concat([found.train, found.validation, found.test]).filter(pl.col("query").is_in(queries)).sort("row")
    assert rows.select("row", "document").rows() == [
        ("table:1", "one film"),
        ("table:1 (2)", "two films"),
        ("table:2", "a book"),
    ]
    assert [(row.row, row.reason) for row in found.audit.dropped] == [("table:3", "missing document")]
    assert found.audit.parted == 1
    task = Embedding.blank()
    (example,) = task.encode(listed[:1], tiny.make_tokenizer(), None).examples
    assert len(example.target.keys) == 2


def embed_plainly(folder: Path, texts: list[str]) -> np.ndarray:
    """Embed with transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
    return Pooling("mean")(states, inputs["attention_mask"]).numpy()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 1}, "batch"),
        ({"metric": "accuracy"}, "recall_at_10"),
        ({"data": {"label": "label"}}, "no column 'label'"),
        ({"task": {"embedding": {"temperature": 0}}}, "temperature"),
        ({"micro_batch": 4, "stages": [{"name": "a", "train": "all", "rate": 1e-3, "mixout": 0.1}]}, "mixout"),
        ({"stages": [{"name": "a", "train": "all", "rate": 1e-3, "r_drop": 1.0}]}, "r_drop"),
    ],
)
def test_what_cannot_be_is_refused(bert: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_session(bert, **settings)


@pytest.mark.parametrize(
    ("part", "refusal"),
    [("head", r"train: 'head': this model has no head of its own"), ("pooler", "train: none of the weights")],
)
def test_what_no_vector_is_made_of_is_not_trained(bert: Path, tmp_path: Path, part: str, refusal: str) -> None:
    """A saved masked language model has no pooler, so that the body's is drawn, and never read."""
    stage = {"name": "only", "train": part, "rate": 1e-3, "until": {"updates": 1}}
    recipe = {"task": "embedding", "data": {"near_duplicates": False}, "batch": 16, "stages": [stage]}
    with pytest.raises(InputError, match=refusal):
        alloytune.tune(make_pairs(120), str(bert), recipe, output=tmp_path / "run")
