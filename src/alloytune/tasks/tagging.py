"""Tagging: entities in a sentence, by tags of its words."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from scipy.special import log_softmax
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from alloytune.data.rules import Counts, Given, Rules
from alloytune.errors import InputError
from alloytune.tasks.aligning import align, blanks_of, wants_blanks, with_blanks
from alloytune.tasks.labels import FEW_ROWS, label_config, name_some, require_among, require_known, sort_naturally
from alloytune.tasks.masking import IGNORED
from alloytune.tasks.metrics import spread_of
from alloytune.tasks.task import Batch, Encoded, Example, Task
from alloytune.tasks.texts import ROWS_AT_ONCE, pad_inputs, row_names
from alloytune.tasks.uncached import call_uncached
from alloytune.tasks.words import (
    OUTSIDE,
    Sentence,
    glued_words,
    is_on_words,
    read_sentences,
    read_spans,
    sift_spans,
    sift_tokens,
)
from alloytune.tasks.words import spans_of as spans_of_tags


@dataclass(frozen=True)
class Tagged:
    """The words of an example: the sentence, and the position of the token that stands for each word that has one."""

    sentence: Sentence
    positions: dict[int, int]  # word -> token


@dataclass(frozen=True)
class Tagging(Task):
    """A tag for every word; the loss is cross-entropy at one token of each. `labels` are the tags.

    Where `of_spans`, rows are texts with spans of characters, not tokens with tags. `first_outputs` are the logarithms
    of the tags' shares in training, where the head begins.
    """

    labels: tuple[str, ...]
    of_spans: bool = False
    first_outputs: tuple[float, ...] | None = None
    auto_class: ClassVar[Any] = AutoModelForTokenClassification
    pipeline: ClassVar[str] = "token-classification"

    @classmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Ask for tags that fit the tokens, or for spans inside the text, which stays as it is for their sake."""
        of_tokens = "tokens" in columns
        return Rules(
            texts=("tokens",) if of_tokens else ("text",),
            answers=("tags",) if of_tokens else ("spans",),
            sift=sift_tokens if of_tokens else sift_spans,
            taught=lambda rows: [frozenset(sentence.tags or ()) for sentence in read_sentences(rows)],
            require=_require,
            count=_count,
            warn=_warn,
        )

    @classmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Learn the tags: O first, then for each type those that there are, B- and I- in any case."""
        counts = Counter(tag for sentence in read_sentences(train) for tag in sentence.tags or ())
        tags = set(counts) - {OUTSIDE}
        whole = tags | {f"{start}-{tag[2:]}" for tag in tags for start in "BI"}
        ordered = sorted(whole, key=lambda tag: (tag[2:], tag[0]))
        labels = (OUTSIDE, *ordered)
        shares = tuple(math.log((counts[label] + 0.5) / (counts.total() + 0.5 * len(labels))) for label in labels)
        return cls(labels, "spans" in train.columns, shares)

    @classmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Take the tags as they were learned."""
        return cls(tuple(learned["labels"]), learned["of_spans"])

    @classmethod
    def blank(cls) -> Self:
        """Give the tags of one type."""
        return cls((OUTSIDE, "B-first", "I-first"))

    @property
    def learned(self) -> dict[str, Any]:
        """Give the tags, and what they are of."""
        return {"labels": list(self.labels), "of_spans": self.of_spans}

    @property
    def config(self) -> dict[str, Any]:
        """Give the tags in the form that transformers keeps in a model's config."""
        return label_config(self.labels)

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize words; tags are for the first token of each that is more than a blank.

        Words beyond the limit have no tag and are answered with O. Rows in which no word becomes a token are left out.
        """
        if not tokenizer.is_fast:
            raise InputError("model", "its tokenizer cannot tell which word a token is of", "use one that is fast")
        sentences, rows = read_sentences(table), row_names(table)
        require_among("tags", self.labels, (sentence.tags or () for sentence in sentences))
        glued = [glued_words(sentence) for sentence in sentences]
        words = [sentence.words for sentence in sentences]
        if wants_blanks(tokenizer):
            words = list(map(with_blanks, words, glued))
        is_blank = blanks_of(tokenizer)
        examples, left_out, num_cut = [], [], 0
        for start in range(0, len(sentences), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            encoded = tokenizer(words[part], is_split_into_words=True)
            keys = [key for key in encoded if key != "attention_mask"]
            for n, (row, sentence) in enumerate(zip(rows[part], sentences[part], strict=True)):
                ids, words_of = encoded["input_ids"][n], encoded.word_ids(n)
                found = align(ids, words_of, glued[start + n], is_blank, max_length)
                num_cut += bool(sentence.words) and max(found.positions, default=-1) < len(sentence.words) - 1
                if found.positions:
                    inputs = {key: [encoded[key][n][place] for place in found.kept] for key in keys}
                    examples.append(Example(row, inputs, Tagged(sentence, found.positions)))
                else:
                    left_out.append((row, "no word becomes a token"))
        return Encoded(examples, num_cut, tuple(left_out))

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad these examples; the target of a word stands at its first token."""
        inputs = pad_inputs([example.inputs for example in examples], tokenizer)
        number_of = {label: number for number, label in enumerate(self.labels)}
        targets = torch.full(inputs["input_ids"].shape, IGNORED)
        for n, example in enumerate(examples):
            shift = targets.shape[1] - example.num_tokens if tokenizer.padding_side == "left" else 0
            tags = example.target.sentence.tags
            for word, place in example.target.positions.items():
                targets[n, shift + place] = 0 if tags is None else number_of[tags[word]]
        return Batch(
            inputs=inputs,
            targets=targets,
            rows=tuple(example.row for example in examples),
            num_tokens=sum(example.num_tokens for example in examples),
            num_targets=sum(len(example.target.positions) for example in examples),
        )

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the cross-entropy of logits; `label_smoothing` is the share of each target spread over all tags."""
        targets = batch.targets[batch.targets != IGNORED]
        return cross_entropy(outputs, targets, reduction="sum", label_smoothing=label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the logits of the words, [words of all examples, tags]."""
        logits: Tensor = call_uncached(model, batch.inputs).logits
        return logits[batch.targets != IGNORED].float()

    def answers(self, model: nn.Module, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Sequence[np.ndarray]:
        """Give the logits of every example, [words with a token, tags], in the words' order."""
        sizes = (batch.targets != IGNORED).sum(dim=1).tolist()
        return [logits.cpu().numpy() for logits in self.outputs(model, batch).split(sizes)]

    def spread(self, answers: Sequence[np.ndarray]) -> float:
        """Give how far logits differ from word to word."""
        return spread_of(np.concatenate(answers))

    def figures(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> np.ndarray:
        """Give for every row its entities, those found, those found rightly, its words, right words and summed loss."""
        return np.array([self._row(logits, example) for logits, example in zip(answers, examples, strict=True)], float)

    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give F1, precision and recall of entities (seqeval's, right in type and both ends), word accuracy and loss.

        Of 4 entities, 3 found and 2 of them rightly: precision 2/3, recall 1/2, F1 4/7.
        """
        true, found, right, words, right_words, loss, num_targets = figures.sum(axis=0)
        return {
            "f1": float(2 * right / max(true + found, 1)),
            "precision": float(right / max(found, 1)),
            "recall": float(right / max(true, 1)),
            "accuracy": float(right_words / words),
            "loss": float(loss / num_targets),
        }

    def details(
        self, answers: Sequence[np.ndarray], examples: Sequence[Example], figures: np.ndarray
    ) -> dict[str, Any]:
        """Give figures per type of entity."""
        true, found, right = Counter[str](), Counter[str](), Counter[str]()
        for logits, example in zip(answers, examples, strict=True):
            entities, answered = self._entities(logits, example)
            true.update(kind for kind, *_ in entities)
            found.update(kind for kind, *_ in answered)
            right.update(kind for kind, *_ in entities & answered)
        return {
            "per_type": [
                {
                    "type": kind,
                    "precision": right[kind] / max(found[kind], 1),
                    "recall": right[kind] / max(true[kind], 1),
                    "f1": 2 * right[kind] / max(true[kind] + found[kind], 1),
                    "entities": true[kind],
                }
                for kind in sort_naturally(true.keys() | found.keys())
            ]
        }

    def table(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> pl.DataFrame:
        """Give the column `tags`, a list with a tag for every token, or `spans` where texts were given."""
        tags = [self._tags(logits, example) for logits, example in zip(answers, examples, strict=True)]
        if not self.of_spans:
            return pl.DataFrame({"tags": tags}, schema={"tags": pl.List(pl.String)})
        offsets = [example.target.sentence.offsets for example in examples]
        spans = [
            [dict(zip(SPAN, span, strict=True)) for span in spans_of_tags(own_tags, own)]
            for own_tags, own in zip(tags, offsets, strict=True)
        ]
        return pl.DataFrame({"spans": spans}, schema={"spans": pl.List(pl.Struct(SPAN))})

    def _tags(self, logits: np.ndarray, example: Example) -> list[str]:
        """Give the tag of every word, O where it has no token."""
        tags = [OUTSIDE] * len(example.target.sentence.words)
        for word, number in zip(sorted(example.target.positions), logits.argmax(axis=1), strict=True):
            tags[word] = self.labels[number]
        return tags

    def _entities(self, logits: np.ndarray, example: Example) -> tuple[set[Any], set[Any]]:
        """Give the entities that are there and those that are answered, each as type, first and last word."""
        return set(get_entities(example.target.sentence.tags)), set(get_entities(self._tags(logits, example)))

    def _row(self, logits: np.ndarray, example: Example) -> list[float]:
        entities, answered = self._entities(logits, example)
        tags, places = example.target.sentence.tags, sorted(example.target.positions)
        number_of = {label: number for number, label in enumerate(self.labels)}
        targets = [number_of[tags[word]] for word in places]
        loss = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(targets)), targets].sum()
        right_words = sum(one == two for one, two in zip(tags, self._tags(logits, example), strict=True))
        found = (len(entities), len(answered), len(entities & answered))
        return [*found, len(tags), right_words, loss, len(targets)]


TASK = Tagging

SPAN: dict[str, Any] = {"start": pl.Int64, "end": pl.Int64, "label": pl.String}


def _count(rows: pl.DataFrame) -> dict[str, int]:
    """Count the entities of each type."""
    counts = Counter(kind for sentence in read_sentences(rows) for kind, *_ in get_entities(sentence.tags or []))
    return {kind: counts[kind] for kind in sort_naturally(counts)}


def _require(given: Given) -> None:
    """Raise an InputError where train has no entity, or a split has types that it does not have."""
    if given.split == "train" and not _count(given.rows):
        raise InputError(given.where, "there is no entity in any row", "give rows with tags other than O, or spans")
    require_known(given.where, given.split, pl.Series(list(_count(given.rows))), _count(given.train))


def _warn(read: pl.DataFrame, kept: pl.DataFrame, counts: Counts) -> list[str]:
    few = [kind for kind, number in counts["train"].items() if number < FEW_ROWS]
    warnings = [f"fewer than {FEW_ROWS} training entities of {len(few)} type(s): {name_some(few)}"] if few else []
    if "spans" in kept.columns:
        cells = zip(kept["text"], kept["spans"], strict=True)
        widened = sum(not is_on_words(text, read_spans(spans)) for text, spans in cells)
        if widened:
            warnings.append(f"{widened} texts have spans that begin or end inside a word; they are read as whole words")
    return warnings
