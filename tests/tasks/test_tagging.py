"""Tags and spans: alignment with tokens, values by seqeval, and rows whose tags do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

import tiny
from alloytune.errors import InputError
from alloytune.models.load import load_tokenizer
from alloytune.tasks.masking import IGNORED
from alloytune.tasks.tagging import Tagging
from alloytune.tasks.task import scores_of
from alloytune.tasks.words import is_on_words, spans_of, tag_words
from data.example_tables import sentence, with_answers
from tasks.tables import spanned, tagged

LABELS = ("O", "B-BLAME", "I-BLAME", "B-PRAISE", "I-PRAISE")


def row(tokens: list[str], tags: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"tokens": [json.dumps(tokens)], "tags": [json.dumps(tags)]})


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tag_stands_at_the_first_token_of_its_word(bert: Path, side: str) -> None:
    tokenizer = load_tokenizer(str(bert))
    tokenizer.padding_side = side
    table = pl.concat([row(["good film", "", "bad"], ["B-PRAISE", "O", "B-BLAME"]), row(["a"] * 6, ["O"] * 6)])
    found = Tagging(LABELS).encode(table, tokenizer, None)
    assert [example.target.positions for example in found.examples] == [{0: 1, 2: 3}, {n: n + 1 for n in range(6)}]
    batch = Tagging(LABELS).collate(found.examples, tokenizer)
    first = batch.targets[0].tolist()
    place = 3 if side == "left" else 0  # [CLS] good film bad [SEP] beside [CLS] a a a a a a [SEP]
    assert {n: target for n, target in enumerate(first) if target != IGNORED} == {place + 1: 3, place + 3: 1}
    assert batch.num_targets == 8
    words = [tiny.WORDS[number] for number in batch.inputs["input_ids"][0].tolist()]
    assert (words[place + 1], words[place + 3]) == ("good", "bad")


def test_words_beyond_the_limit_are_answered_with_o_and_counted(bert: Path) -> None:
    tokens, tags = ["a"] * 9 + ["good"], ["O"] * 9 + ["B-PRAISE"]
    found = Tagging(LABELS).encode(row(tokens, tags), load_tokenizer(str(bert)), 6)
    assert found.num_cut == 1
    logits = np.zeros((4, 5))
    values = scores_of(Tagging(LABELS), [logits], found.examples).values
    assert (values["recall"], values["accuracy"]) == (0.0, 0.9)
    table = Tagging(LABELS).table([logits], found.examples)
    assert table["tags"].to_list() == [["O"] * 10]


def test_a_row_without_any_token_is_left_out(bert: Path) -> None:
    table = pl.concat([row(["a"], ["O"]), row([" "], ["O"])])
    found = Tagging(LABELS).encode(table, load_tokenizer(str(bert)), None)
    assert found.left_out == (("2", "no word becomes a token"),)


@pytest.mark.parametrize("table", [tagged(60), spanned(60)], ids=["tokens", "spans"])
def test_values_are_those_of_seqeval(bert: Path, table: pl.DataFrame) -> None:
    task = Tagging(LABELS)
    examples = task.encode(table, load_tokenizer(str(bert)), None).examples
    random = np.random.default_rng(0)
    answers = [random.normal(0, 1, (len(example.target.positions), 5)) for example in examples]
    for example, logits in zip(examples, answers, strict=True):
        for n, tag in enumerate(example.target.sentence.tags):
            logits[n, LABELS.index(tag)] += 2
    true = [example.target.sentence.tags for example in examples]
    found = [[LABELS[number] for number in logits.argmax(axis=1)] for logits in answers]
    values = scores_of(task, answers, examples).values
    assert values["f1"] == pytest.approx(f1_score(true, found))
    assert values["precision"] == pytest.approx(precision_score(true, found))
    assert values["recall"] == pytest.approx(recall_score(true, found))


def test_the_head_begins_at_the_shares_of_the_tags() -> None:
    task = Tagging.learn({}, pl.concat([row(["a", "good"], ["O", "B-PRAISE"]), row(["a"] * 98, ["O"] * 98)]))
    assert task.labels == ("O", "B-PRAISE", "I-PRAISE")
    assert np.exp(task.first_outputs) == pytest.approx([0.98, 0.015, 0.005], abs=0.002)


def test_spans_come_back_as_they_were() -> None:
    text = "北京 is fine, so-so"
    offsets = [(0, 1), (1, 2), (3, 5), (6, 10), (10, 11), (12, 14), (14, 15), (15, 17)]
    spans = [(0, 2, "PLACE"), (12, 17, "MOOD")]
    tags = tag_words(offsets, spans)
    assert tags == ["B-PLACE", "I-PLACE", "O", "O", "O", "B-MOOD", "I-MOOD", "I-MOOD"]
    assert spans_of(tags, offsets) == spans
    assert is_on_words(text, spans)
    assert not is_on_words(text, [(6, 8, "MOOD")])


def dropped(form: tuple[str, str], cells: list[tuple[str, Any]]) -> dict[str, list[str]]:
    """Clean a table with some odd rows, and give the details of what was dropped by reason."""
    good = tagged(40) if form[0] == "tokens" else spanned(40)
    odd = pl.DataFrame(cells, schema=list(good.columns), orient="row")
    found: dict[str, list[str]] = {}
    for one in with_answers(Tagging, {}, pl.concat([good, odd])).audit.dropped:
        found.setdefault(one.reason, []).append(one.detail)
    return found


def test_tags_that_do_not_fit_are_dropped_and_listed() -> None:
    odd = [
        ('["x", "y"]', '["O"]'),
        ("p q", "O B-X"),
        ('["v"]', "[3]"),
        ('["u"]', '["PER-B"]'),
        ("[]", "[]"),
        ('["w"]', None),
    ]
    assert dropped(("tokens", "tags"), odd) == {
        "missing tags": [""],
        "no tokens": ["an empty list"],
        "tags do not match the tokens": ["2 tokens, 1 tags"],
        "no BIO tag": [f"'{tag}' (tags are O, B-TYPE, I-TYPE)" for tag in ("3", "PER-B")],
    }


def test_entities_of_one_word_and_last_words_are_told_apart_however_they_are_written() -> None:
    """BILOU says L, U for the E, S of BIOES, and BMES M for I; seqeval, which counts entities, knows BIOES alone."""
    bioes = ["S-PER", "S-PER", "B-PER", "I-PER", "E-PER", "O", "B-ORG", "E-ORG", "S-ORG"]
    entities = {("PER", 0, 0), ("PER", 1, 1), ("PER", 2, 4), ("ORG", 6, 7), ("ORG", 8, 8)}
    bilou = [tag.replace("S-", "U-").replace("E-", "L-") for tag in bioes]
    bmes = [tag.replace("I-", "M-") for tag in bioes]
    tokens = [[f"{word}{n}" for word in "abcdefghi"] for n in range(20)]
    for tags in (bioes, bilou, bmes):
        dataset = with_answers(Tagging, {}, pl.concat([row(words, tags) for words in tokens]))
        assert set(dataset.train["tags"]) == {json.dumps(bioes)}
        assert set(get_entities(json.loads(dataset.train["tags"][0]))) == entities


def test_spans_that_do_not_fit_are_dropped_and_listed() -> None:
    text = sentence(1)
    odd = [
        (text, '[[0, 999, "X"]]'),
        (text + " a", '[[-1, 2, "X"]]'),
        (text + " b", '[[3, 3, "X"]]'),
        (text + " c", '[[0, 5, "X"], [3, 9, "Y"]]'),
        (text + " d", "somewhere"),
        (text + " e", '[{"start": 0, "end": "5.5", "label": "X"}]'),
        (text + " g", '[{"start": 0, "end": 6, "labels": ["X", "Y"]}]'),
        (text + " h", '[[0, true, "X"]]'),
        (text + " i", '[[0, 6, " "]]'),
        (text + " f", '[{"start": 0, "end": 6, "label": "X"}]'),
    ]
    found = dropped(("text", "spans"), odd)
    assert list(found) == ["spans cannot be read", "span outside its text", "spans overlap"]
    assert [len(details) for details in found.values()] == [5, 3, 1]
    assert "[0, 999, 'X']" in found["span outside its text"][0]


@pytest.mark.parametrize(
    "written",
    [
        {"start_offset": 0, "end_offset": 6, "entity_group": "Job Title"},
        {"start": "0", "end": 6.0, "type": "Job Title"},
        {"start": 0, "end": "6.0", "tag": " Job Title"},
        {"start": 0, "end": 6, "labels": ["Job Title"], "label": None},
        ["0", 6, "Job Title"],
    ],
)
def test_spans_are_read_however_they_are_written(bert: Path, written: Any) -> None:
    """Their type comes back as it was named, with its blanks."""
    table = pl.DataFrame({"text": [sentence(n) for n in range(40)], "spans": [json.dumps([written])] * 40})
    train = with_answers(Tagging, {}, table).train
    assert set(train["spans"]) == {'[[0, 6, "Job Title"]]'}
    task = Tagging.learn({}, train)
    assert task.labels == ("O", "B-Job Title", "I-Job Title")
    (example,) = task.encode(train.head(1), load_tokenizer(str(bert)), None).examples
    answer = np.eye(3)[[1] + [0] * (len(example.target.positions) - 1)]
    (spans,) = task.table([answer], [example])["spans"]
    assert spans.to_list() == [{"start": 0, "end": 6, "label": "Job Title"}]


def test_a_table_without_entities_is_refused() -> None:
    rows = [row([f"w{n}", f"x{n}"], ["O", "O"]) for n in range(20)]
    with pytest.raises(InputError, match="there is no entity in any row"):
        with_answers(Tagging, {}, pl.concat(rows))


def test_tags_that_the_model_does_not_know_are_named(bert: Path) -> None:
    with pytest.raises(InputError, match='tags: 1 row has what the model does not know: "B-NEW"; remove'):
        Tagging(LABELS).encode(row(["a"], ["B-NEW"]), load_tokenizer(str(bert)), None)
    known = next(label for label in LABELS if label != "O")
    with pytest.raises(InputError, match=f'"{known.swapcase()}"; did you mean "{known}"\\? remove such rows'):
        Tagging(LABELS).encode(row(["a"], [known.swapcase()]), load_tokenizer(str(bert)), None)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [None, 150])
def test_train_has_every_tag_that_another_split_asks_for(bert: Path, seed: int, rows: int | None) -> None:
    kinds = [f"RARE{n}" if n < 10 else "COMMON" for n in range(300)]
    table = pl.concat([row(sentence(n).split()[:2], ["O", f"B-{kind}"]) for n, kind in enumerate(kinds)])
    dataset = with_answers(Tagging, {}, table, seed=seed, rows=rows)
    task = Tagging.learn({}, dataset.train)
    assert len(task.encode(dataset.validation, load_tokenizer(str(bert)), None).examples) == dataset.validation.height
    assert len(task.labels) == 1 + 2 * 11
