"""Writing as a task: what carries loss, what is left out, and that packing and splitting change nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

import tiny
from alloytune.data.clean import strip
from alloytune.tasks.asked import Asked, Form, ask, form_of, rules_for
from alloytune.tasks.generation import Generation
from alloytune.tasks.masking import IGNORED
from alloytune.tasks.task import scores_of
from alloytune.tasks.translation import Translation
from alloytune.tasks.writing import Written
from templates import CHATML, tokenizer_of_bytes


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.save_llama(tmp_path_factory.mktemp("llama"))).eval()


def completions(rows: int = 12) -> pl.DataFrame:
    table = tiny.make_table(rows)
    return pl.DataFrame({"prompt": table["text"] + " was", "completion": " " + table["label"]})


def test_packing_and_splitting_change_nothing(llama: Any) -> None:
    tokenizer = tiny.make_tokenizer()
    table = completions()
    packing, plain = (Generation(("prompt", "completion"), packing=packing) for packing in (True, False))
    examples = plain.encode(table, tokenizer, None).examples
    losses = []
    for task, size in ((packing, 12), (plain, 12), (packing, 5), (plain, 1)):
        llama.zero_grad()
        parts = [examples[start : start + size] for start in range(0, len(examples), size)]
        sums = [task.summed_loss(llama, task.collate(part, tokenizer)) for part in parts]
        torch.stack(sums).sum().backward()
        losses.append((float(sum(sums).detach()), llama.model.embed_tokens.weight.grad.clone()))
    for loss, gradient in losses[1:]:
        assert loss == pytest.approx(losses[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, losses[0][1], rtol=1e-4, atol=1e-5)
    batch = plain.collate(examples, tokenizer)
    assert batch.num_targets == 2 * len(examples), "the word and the end token"
    assert (batch.targets != IGNORED).sum() == batch.num_targets


def test_losses_of_rows_add_up_to_the_batch_s(llama: Any) -> None:
    tokenizer = tiny.make_tokenizer()
    task = Generation(("prompt", "completion"), generate=2, max_new_tokens=3)
    examples = task.encode(completions(), tokenizer, None).examples
    batch = task.collate(examples, tokenizer)
    with torch.no_grad():
        answers = task.answers(llama, batch, tokenizer)
        whole = float(task.summed_loss(llama, batch))
    assert sum(answer.loss for answer in answers) == pytest.approx(whole, rel=1e-5)
    assert [answer.text is not None for answer in answers] == [True, True] + [False] * (len(examples) - 2)
    scores = scores_of(task, answers, examples)
    assert scores.values["loss"] == pytest.approx(whole / batch.num_targets, rel=1e-5)
    assert scores.values["perplexity"] == pytest.approx(np.exp(scores.values["loss"]))
    assert np.array(scores.figures).shape == (len(examples), 3 + 1 + 18 + 1)
    halves = [np.array(scores.figures)[:6], np.array(scores.figures)[6:]]
    tokens = [half[:, 1].sum() for half in halves]
    means = [task.values(half)["loss"] for half in halves]
    assert np.average(means, weights=tokens) == pytest.approx(scores.values["loss"])


def test_what_is_not_there_to_be_scored_is_not_scored() -> None:
    plain = Generation(("text",))
    assert set(plain.values(np.array([[4.0, 2.0, 0.0]]))) == {"loss", "perplexity"}
    silent = Generation(("prompt", "completion"), generate=0)
    assert set(silent.values(np.array([[4.0, 2.0, 0.0]]))) == {"loss", "perplexity"}
    examples = plain.encode(pl.DataFrame({"text": ["a book"]}), tiny.make_tokenizer(), None).examples
    table = plain.table([Written(6.0, 3, None)], examples)
    assert table.row(0) == (2.0, pytest.approx(np.exp(2.0)), 3)


def test_rows_that_do_not_fit_are_named_with_their_reason() -> None:
    tokenizer = tokenizer_of_bytes(CHATML)
    talks = [
        [("user", "Hi"), ("assistant", "Hello")],
        [("user", "Hi " * 30), ("assistant", "Hello")],
        [("user", "Hi"), ("assistant", "Hello" * 30)],
    ]
    cells = [json.dumps([{"role": role, "content": content} for role, content in talk]) for talk in talks]
    task = Generation(("messages",))
    encoded = task.encode(pl.DataFrame({"row": ["a", "b", "c"], "messages": cells}), tokenizer, 60)
    assert [example.row for example in encoded.examples] == ["a", "b"]
    assert encoded.num_cut == 1
    assert encoded.left_out == (("c", "answer longer than the limit"),)
    for example in encoded.examples:
        learned = [token for token in example.target.targets if token != IGNORED]
        assert tokenizer.decode(learned) == "Hello<|im_end|>"


@pytest.mark.parametrize(
    ("columns", "form", "texts"),
    [
        (["instruction", "output"], "instruction", ("instruction",)),
        (["instruction", "input", "output"], "instruction", ("instruction", "input")),
        (["instruction", "output", "system"], "instruction", ("instruction", "system")),
        (["messages"], "messages", ("messages",)),
        (["prompt", "completion"], "completion", ("prompt",)),
        (["source", "target"], "source", ("source",)),
        (["text"], "text", ("text",)),
    ],
)
def test_the_columns_tell_how_examples_are_written(columns: list[str], form: Form, texts: tuple[str, ...]) -> None:
    assert form_of(columns) == form
    assert rules_for(columns).texts == texts


def test_blanks_between_prompt_and_completion_stay() -> None:
    table = pl.DataFrame({"prompt": ["a "], "completion": [" b"]})
    assert strip(table, rules_for(table.columns)).equals(table)


def test_conversations_that_teach_nothing_are_dropped_and_others_end_on_an_answer() -> None:
    talks: list[Any] = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}],
        "no list",
    ]
    table = pl.DataFrame({"row": ["a", "b", "c"], "split": ["train"] * 3, "messages": [json.dumps(t) for t in talks]})
    rules = rules_for(["messages"])
    kept, unreadable = rules.sift(table)
    kept, unanswered = rules.answered(kept)
    assert [(row.row, row.reason) for row in (*unreadable, *unanswered)] == [
        ("c", "unreadable messages"),
        ("a", "no assistant turn"),
    ]
    assert json.loads(kept["messages"][0]) == talks[1][:2]


@pytest.mark.parametrize("last", [{"content": " "}, {"content": "Never.", "weight": 0}])
def test_a_conversation_ends_on_an_answer_that_is_learned(last: dict[str, Any]) -> None:
    unlearned = {"role": "assistant", **last}
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]
    cells = [json.dumps([*talk, unlearned]), json.dumps([talk[0], unlearned])]
    table = pl.DataFrame({"row": ["a", "b"], "split": ["train"] * 2, "messages": cells})
    kept, dropped = rules_for(["messages"]).answered(table)
    assert [row.row for row in dropped] == ["b"]
    assert json.loads(kept["messages"][0]) == talk[:2]


def test_an_empty_last_turn_is_still_to_be_written() -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    assert ask({"messages": json.dumps(talk)}, "messages") == Asked((talk[0],))


def test_a_decoder_is_asked_to_translate_and_an_encoder_reads_the_source(tmp_path: Path) -> None:
    settings = {"prompt": None, "packing": True, "generate": 1, "max_new_tokens": 5, "bleu_words": "13a"}
    train = pl.DataFrame({"row": ["a"], "source": ["one"], "target": ["two"]})
    T5Config().save_pretrained(tmp_path / "t5")
    LlamaConfig().save_pretrained(tmp_path / "llama")
    asked, read = (Translation.learn(settings, train).fitted(str(tmp_path / name)) for name in ("llama", "t5"))
    assert asked.prompt == "Translate:\n\n{source}"
    assert read.prompt == "{source}"
    assert read.auto_class is AutoModelForSeq2SeqLM
    assert Translation.recall(settings, read.learned) == read
    tokenizer = tokenizer_of_bytes(CHATML)
    (example,) = asked.encode(train, tokenizer, None).examples
    assert tokenizer.decode(example.target.prompt).startswith("<|im_start|>user\nTranslate:\n\none<|im_end|>")
    (example,) = read.encode(train, tokenizer, None).examples
    assert tokenizer.decode(example.inputs["input_ids"]) == "one"
    assert tokenizer.decode(example.target.targets) == "two</s>"


@pytest.mark.parametrize(
    ("columns", "asked"),
    [
        ({"source": "one two three " * 9, "target": "Short."}, "Translate:\n\none two"),
        ({"instruction": "Sum up.", "input": "one two three " * 9, "output": "Short."}, "Sum up.\n\none two"),
    ],
    ids=["source", "input"],
)
def test_a_passage_that_is_too_long_loses_its_end_and_not_what_is_asked(columns: dict[str, str], asked: str) -> None:
    tokenizer = tokenizer_of_bytes(CHATML)
    task = (
        Translation(("source", "target"), prompt="Translate:\n\n{source}")
        if "source" in columns
        else Generation(("instruction", "input", "output"))
    )
    whole = task.encode(pl.DataFrame([columns]), tokenizer, None)
    (all_of_it,) = whole.examples
    assert whole.num_cut == 0
    for limit in (all_of_it.num_tokens, 100, 90):
        encoded = task.encode(pl.DataFrame([columns]), tokenizer, limit)
        (example,) = encoded.examples
        assert encoded.num_cut == (limit < all_of_it.num_tokens)
        assert limit - 8 <= example.num_tokens <= limit
        text = tokenizer.decode(example.inputs["input_ids"])
        assert text.startswith(f"<|im_start|>user\n{asked}")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\nShort.<|im_end|>\n")
        assert text.startswith(tokenizer.decode(example.target.prompt))
        unanswered = {key: value for key, value in columns.items() if value != "Short."}
        told = task.encode(pl.DataFrame([unanswered]), tokenizer, limit)
        assert told.num_cut == (limit < len(all_of_it.target.prompt))
        assert tokenizer.decode(told.examples[0].target.prompt).startswith(f"<|im_start|>user\n{asked}")


def test_a_prompt_that_is_cut_keeps_the_token_that_begins_every_text() -> None:
    tokenizer = tokenizer_of_bytes(None)
    tokenizer.add_bos_token = True
    rows = pl.DataFrame({"messages": [json.dumps([{"role": "user", "content": "who is it " * 9}])]})
    encoded = Generation(("messages",)).encode(rows, tokenizer, 20)
    prompt = encoded.examples[0].target.prompt
    assert (len(prompt), encoded.num_cut) == (20, 1)
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.decode(prompt).endswith("### Assistant:\n")


def test_an_answer_to_nothing_is_dropped() -> None:
    alone = json.dumps([{"role": "assistant", "content": "Hello"}])
    table = pl.DataFrame({"row": ["a"], "split": ["train"], "messages": [alone]})
    kept, dropped = rules_for(["messages"]).answered(table)
    assert kept.is_empty()
    assert [(row.reason, row.detail) for row in dropped] == [
        ("nothing before the answer", "the only message is the assistant's")
    ]
    encoded = Generation(("messages",)).encode(table, tokenizer_of_bytes(CHATML), None)
    assert encoded.left_out == (("a", "the only message is the assistant's"),)


def test_all_of_a_long_text_is_learned_and_its_beginning_scored() -> None:
    tokenizer = tokenizer_of_bytes(CHATML)
    texts = pl.DataFrame({"row": ["a", "b", "c"], "text": ["one two three four", "short", ""]})
    task = Generation(("text",))
    scored, learned = task.encode(texts, tokenizer, 8), task.encode_in_pieces(texts, tokenizer, 8)
    assert [example.row for example in scored.examples] == ["a", "b"]
    assert scored.num_cut == 1
    assert [example.row for example in learned.examples] == ["a", "a", "a", "b"]
    assert (learned.num_cut, learned.left_out) == (0, scored.left_out)
    assert learned.notes == ("texts longer than 8 tokens are read in pieces: 2 more examples",)
    assert max(example.num_tokens for example in learned.examples) == 8
    targets = [token for example in learned.examples for token in example.target.targets if token != IGNORED]
    whole = task.encode(texts, tokenizer, None).examples
    assert targets == [token for example in whole for token in example.target.targets if token != IGNORED]
