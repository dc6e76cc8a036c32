"""Preferences, through whole stages: what the loss compares with, how pairs are passed, resumed and refused."""

import io
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

import alloytune
import tiny
from alloytune.build.data import build_data_settings
from alloytune.build.plan import build_updates
from alloytune.build.session import Session, build_session
from alloytune.data.prepare import prepare
from alloytune.errors import InputError
from alloytune.machine import find_machine
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.read import recipe_from
from alloytune.record.folder import RunFolder
from alloytune.report.tables import print_places
from alloytune.stages.anchoring import anchor
from alloytune.talk import load_writer
from alloytune.tasks.preference import Preference
from alloytune.train.loop import add_gradients
from flows.test_pace import carry_out_stages
from flows.test_resume import weights


def make_pairs(rows: int) -> pl.DataFrame:
    """Make prompts to which a good word is the better answer."""
    draw = random.Random(0)
    numbers = draw.sample(range(3600), rows)
    return pl.DataFrame(
        {
            "prompt": [f"{n // 60} {' '.join(draw.choices(tiny.PLAIN, k=3))} {n % 60} :" for n in numbers],
            "chosen": [f" {draw.choice(tiny.GOOD)} {draw.choice(tiny.PLAIN)}" for _ in numbers],
            "rejected": [f" {draw.choice(tiny.BAD)}" for _ in numbers],
        }
    )


def make_session(model: Path, table: pl.DataFrame | None = None, **settings: Any) -> Session:
    recipe = recipe_from(
        {
            "model": str(model),
            "task": "preference",
            "data": {"near_duplicates": False},
            "batch": 8,
            "stages": [{"name": "full", "train": "all", "rate": 1e-3}],
            **settings,
        }
    )
    return build_session(recipe, prepare(build_data_settings(recipe), make_pairs(60) if table is None else table))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_llama(tmp_path_factory.mktemp("llama"))


def test_log_probabilities_are_those_of_the_answers_alone(llama: Path) -> None:
    session = make_session(llama)
    examples = session.examples["train"][:5]
    batch = session.task.collate(examples, session.tokenizer)
    with torch.inference_mode():
        found = session.task.outputs(session.state.model.eval(), batch)
        for row, example in enumerate(examples):
            pair, ids = example.target, torch.tensor(example.inputs["input_ids"])
            for side, text in enumerate(ids.split(pair.lengths)):
                logps = session.state.model(text[None]).logits[0].log_softmax(-1)
                start = pair.starts[side]
                each = logps[range(start - 1, len(text) - 1), text[start:]]
                assert len(text) - start == 3 - side  # the answer's words and the end
                assert float(found[row, side]) == pytest.approx(float(each.sum()), abs=1e-4)


def test_a_stage_begins_at_its_own_weights(llama: Path) -> None:
    """Before the first update of any stage the loss is ln 2, whatever the weights; scores keep to the pretrained."""
    session = make_session(llama)
    anchor(session, ["train", "validation"])
    with torch.no_grad():
        for weight in named_weights(session.state.model).values():
            weight.add_(torch.randn_like(weight) * 0.05)
    loss = partial(add_gradients, session.state.model.train(), machine=session.machine)
    update = next(build_updates(session, 0, 0).after(0))
    assert loss(update, summed_loss=session.task.summed_loss) != pytest.approx(np.log(2), abs=1e-4)
    scored = session.examples["validation"]
    anchor(session, ["train"])
    update = next(build_updates(session, 0, 0).after(0))
    assert loss(update, summed_loss=session.task.summed_loss) == pytest.approx(
        np.log(2), abs=1e-4
    )  # rounding: what answers does so with padding
    assert session.examples["validation"] is scored


def test_a_split_into_micro_batches_changes_nothing(llama: Path) -> None:
    found = []
    for size in (8, 3):
        session = make_session(llama, micro_batch=size)
        anchor(session, ["train"])
        update = next(build_updates(session, 0, 0).after(0))
        loss = add_gradients(session.state.model.train(), update, session.task.summed_loss, find_machine("float32"))
        found.append((loss, {name: weight.grad for name, weight in named_weights(session.state.model).items()}))
    (one, gradients), (other, others) = found
    assert one == pytest.approx(other)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-8)


STAGES = """
model: {model}
task: {{preference: {{beta: 0.5}}}}
data: {{train: pairs.csv, near_duplicates: false, split: {{validation: 20%, test: 20%}}}}
batch: 8
checkpoint: 1 updates
stages:
  - {{name: first, train: all, rate: 5e-3, until: {{epochs: 2}}}}
  - {{name: second, attach: {{lora: {{rank: 2}}}}, train: adapter, rate: 5e-3, until: {{epochs: 1}}}}
"""


def test_a_resumed_run_compares_with_the_same_weights(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pairs(50).write_csv("pairs.csv")
    Path("recipe.yaml").write_text(STAGES.format(model=llama))
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    carry_out_stages(Path("recipe.yaml"), alone)
    for update in (3, 7, None):  # within the first stage and within the second
        carry_out_stages(Path("recipe.yaml"), stopped, update)
    assert weights(alone) == weights(stopped)
    folder = RunFolder(alone)
    start = folder.read("stages/start.json")["values"]
    assert start["loss"] == pytest.approx(np.log(2))
    assert (start["margin"], start["reward_accuracy"]) == (0.0, 0.5)
    first, second = (
        folder.stage(number, name).result()["scores"]["values"]  # type: ignore[index]
        for number, name in enumerate(("first", "second"))
    )
    assert first["accuracy"] > 0.9
    assert first["margin"] > 0.5
    assert second["margin"] >= first["margin"]  # still compared with the pretrained weights
    steps = (folder.stage(1, "second").path / "steps.jsonl").read_text().splitlines()
    assert json.loads(steps[0])["loss"] == pytest.approx(
        np.log(2), abs=1e-4
    )  # rounding: what answers does so with padding


@pytest.mark.slow
def test_what_it_left_weighs_answers_and_writes_its_own(llama: Path, tmp_path: Path) -> None:
    pairs = make_pairs(60)
    given = {
        "model": str(llama),
        "task": "preference",
        "data": {"near_duplicates": False},
        "batch": 8,
        "stages": [{"name": "first", "train": "all", "rate": 5e-3, "until": {"epochs": 2}}],
    }
    tuned = alloytune.tune(pairs, recipe=given, output=tmp_path / "run")
    blank = pairs.with_columns(chosen=pl.when(pl.int_range(pl.len()) != 3).then("chosen"))
    found = tuned.predict_table(blank)
    assert found.columns == ["preferred", "margin", "probability"]
    assert found["preferred"][3] is None
    sure = found["preferred"].drop_nulls() == "chosen"
    scores = tuned.evaluate_table(blank)
    assert scores["values"]["accuracy"] == sure.mean() > 0.9
    assert scores["values"]["margin"] == pytest.approx(found["margin"].mean())
    (answer,) = load_writer(str(tmp_path / "run"), max_new_tokens=3, temperature=0.0, seed=0).answer(["a plot"])
    assert answer
    shown = io.StringIO()
    print_places(Console(file=shown), RunFolder(tmp_path / "run"))
    assert "Use it: alloytune generate" in shown.getvalue()


def test_what_is_too_long_loses_its_beginning(llama: Path) -> None:
    table = pl.DataFrame({"prompt": ["a " * 20 + ":"], "chosen": [" good it was"], "rejected": [" bad"]})
    tokenizer = make_session(llama).tokenizer
    task = Preference(0.1)
    whole, cut = (task.encode(table, tokenizer, limit) for limit in (None, 12))
    (example,), (short,) = whole.examples, cut.examples
    assert (whole.num_cut, cut.num_cut) == (0, 1)
    assert max(short.target.lengths) == 12
    assert [a - b for a, b in zip(example.target.lengths, short.target.lengths, strict=True)] == [
        max(example.target.lengths) - 12
    ] * 2
    assert task.encode(table, tokenizer, 4).left_out == (("1", "answer longer than the limit"),)


def test_conversations_go_through_the_template(llama: Path) -> None:
    prompt = json.dumps([{"role": "user", "content": "a plot"}])
    answers = [json.dumps({"role": "assistant", "content": word}) for word in ("good", "bad")]
    table = pl.DataFrame({"prompt": [prompt], "chosen": answers[:1], "rejected": answers[1:]})
    tokenizer = make_session(llama).tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[CLS] ' + m['content'] + ' [SEP]' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[CLS]' }}{% endif %}"
    )
    (example,) = Preference(0.1).encode(table, tokenizer, None).examples
    encoded = Preference(0.1).encode(pl.concat([table, make_pairs(3)]), tokenizer, None)
    assert encoded.notes == (
        "3 prompts are taken as texts, not in the model's chat template; write messages to have it",
    )
    assert Preference(0.1).encode(table, tokenizer, None).notes == ()
    both = "[CLS] a plot [SEP] [CLS] good [SEP] [CLS] a plot [SEP] [CLS] bad [SEP]"
    assert tokenizer.decode(example.inputs["input_ids"]) == both
    assert example.target.starts == (5, 5)


def test_answers_are_learned_whether_or_not_a_blank_stands_before_them(llama: Path) -> None:
    """As in generation: no token reaches from the prompt into an answer, and blanks at their seam are kept."""
    table = make_pairs(40).with_columns(pl.col("prompt").str.strip_suffix(" :"))
    for rows in (table, table.with_columns(pl.col("chosen", "rejected").str.strip_chars())):
        session = make_session(llama, rows)
        read = prepare(build_data_settings(session.recipe), rows).train
        assert set(read["chosen"]) <= set(rows["chosen"])
        for example in session.examples["train"]:
            pair = example.target
            assert [length - start for length, start in zip(pair.lengths, pair.starts, strict=True)] == [3, 2]


def test_pairs_that_teach_nothing_are_listed(llama: Path) -> None:
    odd = [" good", '[{"role": "nobody", "content": "x"}]', " "]
    same = pl.DataFrame({"prompt": ["one :", "two :", "three :"], "chosen": odd})
    table = pl.concat([make_pairs(40), same.with_columns(rejected=pl.lit(" good"))])
    recipe = make_session(llama).recipe
    dropped = prepare(build_data_settings(recipe), table).audit.dropped
    assert [(drop.reason, drop.detail) for drop in dropped] == [
        ("no pair of answers", "both answers are the same"),
        ("no pair of answers", "a message is of nobody known: role 'nobody'"),
        ("no pair of answers", "an answer is empty"),
    ]


def test_an_encoder_writes_no_answers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not write answers"):
        make_session(tiny.save_bert(tmp_path))


def test_weights_stay_where_they_are_while_the_reference_is_taken(llama: Path) -> None:
    session = make_session(llama)
    before = copy_weights(session.state.model, named_weights(session.state.model))
    anchor(session, ["train", "validation"])
    assert all(torch.equal(weight, before[name]) for name, weight in named_weights(session.state.model).items())
    assert session.state.model.training is make_session(llama).state.model.training
