"""Learning to write texts: next tokens are learned, answers are written and compared with those that were wanted.

What generation, translation and summarization share; they differ in how examples are written and what scores them.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from alloytune.data.rules import Rules
from alloytune.errors import InputError
from alloytune.tasks.answering import write_answers
from alloytune.tasks.asked import ask, form_of, rules_for
from alloytune.tasks.dialogue import UnfitChatError
from alloytune.tasks.masking import IGNORED
from alloytune.tasks.objectives import decoder_setting
from alloytune.tasks.packing import can_pack, pack
from alloytune.tasks.replies import Tokenized, tokenize_in_pieces, tokenize_reply, tokenize_sides
from alloytune.tasks.target_logits import target_logits, target_loss
from alloytune.tasks.task import Batch, Encoded, Example, Task
from alloytune.tasks.text_scores import TextScore, text_scores
from alloytune.tasks.texts import note_pieces, padded_length, row_names

LOGITS_AT_ONCE = 2**27  # numbers, half a gigabyte; scoring takes no more rows together than that
NUM_SHOWN = 5  # answers kept in the details of scores
LARGEST_EXPONENT = 700.0  # e to more than that is no float


@dataclass(frozen=True)
class _Called:
    """What a model is called with, and where that carries loss.

    `chosen` [rows, tokens]; `targets` [chosen] as they stand there; `order` [chosen]: where each target of the batch
    stands among them, if not in its own place.
    """

    inputs: dict[str, Any]
    chosen: Tensor
    targets: Tensor
    order: Tensor | None = None


@dataclass(frozen=True)
class WritingBatch(Batch):
    """Padded examples; `targets` [examples, tokens] has IGNORED where nothing is learned.

    `prompts` are what answers are written behind, empty where none is wanted; `is_two_sided` tells whether targets are
    the decoder's, which are then among the inputs as `labels`.
    """

    prompts: tuple[tuple[int, ...], ...]
    is_two_sided: bool


@dataclass(frozen=True)
class Written:
    """What is known of an example's answer: its summed loss, the tokens that it is the sum of, and the text if any."""

    loss: float
    num_targets: int
    text: str | None


@dataclass(frozen=True)
class Writing(Task):
    """Texts are learned token by token; the loss is the cross-entropy of the tokens of the answers.

    `columns` are those that the examples had. Answers are written for the first `generate` rows that are scored.
    """

    columns: tuple[str, ...]
    is_two_sided: bool = False
    is_encoder: bool = False  # set up as a decoder
    prompt: str | None = None  # the usual one for the model's kind where None, until the task is fitted
    packing: bool = True
    generate: int = 64
    max_new_tokens: int = 128
    bleu_words: str = "13a"
    pipeline: ClassVar[str] = "text-generation"
    metrics: ClassVar[tuple[str, ...]] = ()
    asks: ClassVar[str] = "{source}"  # of a model that reads and writes in one row

    @property
    def auto_class(self) -> Any:
        """Give transformers' class for a model of one side or of two."""
        return AutoModelForSeq2SeqLM if self.is_two_sided else AutoModelForCausalLM

    @classmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Ask for whatever the way of writing examples has."""
        return rules_for(columns)

    @classmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Learn which way examples are written."""
        return cls.recall(settings, {"columns": [name for name in train.columns if name not in ("row", "split")]})

    @classmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Take the columns, what was found of the model, and the settings."""
        found = {key: learned.get(key, False) for key in ("is_two_sided", "is_encoder")}
        found["columns"] = tuple(learned["columns"])
        return cls(**{**settings, **found, "prompt": learned.get("prompt", settings.get("prompt"))})

    @classmethod
    def blank(cls) -> Self:
        """Give the task for plain text."""
        return cls(("text",))

    @property
    def learned(self) -> dict[str, Any]:
        """Give the columns, and what was found of the model."""
        return {
            "columns": list(self.columns),
            "is_two_sided": self.is_two_sided,
            "is_encoder": self.is_encoder,
            "prompt": self.prompt,
        }

    @property
    def config(self) -> dict[str, Any]:
        """Give what sets an encoder up as a decoder; else nothing, as a language model has its head."""
        return {"is_decoder": True} if self.is_encoder else {}

    def fitted(self, source: str) -> Self:
        """Look whether a model is an encoder with a decoder, and ask it as its kind is asked.

        An encoder alone writes as a decoder does, with its own weights, where transformers can set it up so.
        """
        is_two_sided = bool(AutoConfig.from_pretrained(source, trust_remote_code=False).is_encoder_decoder)
        usual = "{source}" if is_two_sided else self.asks
        is_encoder = not is_two_sided and bool(decoder_setting(source))
        prompt = usual if self.prompt is None else self.prompt
        return replace(self, is_two_sided=is_two_sided, is_encoder=is_encoder, prompt=prompt)

    def answering(self, num_rows: int) -> Self:
        """Give the task as it answers the first `num_rows` rows."""
        return replace(self, generate=num_rows)

    def answering_within(self, num_tokens: int) -> Self:
        """Give the task as its answers take so many tokens at most."""
        return replace(self, max_new_tokens=num_tokens)

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize rows; an answer is written for the first `generate` of them, and for all that have none."""
        if self.is_two_sided and form_of(self.columns) == "text":
            what = "a model of two sides answers what its encoder reads, and plain text has one side"
            raise InputError("data.text", what, "give columns with what is read and what is written, or a decoder")
        found = [
            self._tokenize(name, row, tokenizer, max_length)
            for name, row in zip(row_names(table), table.iter_rows(named=True), strict=True)
        ]
        examples = [one.example for one in found if one.example is not None]
        for place in range(self.generate, len(examples)):
            reply = examples[place].target
            if reply.wanted is not None:
                examples[place] = replace(examples[place], target=replace(reply, prompt=()))
        left_out = [
            (name, one.reason) for name, one in zip(row_names(table), found, strict=True) if one.example is None
        ]
        return Encoded(examples, sum(one.is_cut for one in found), tuple(left_out))

    def encode_in_pieces(
        self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """Tokenize rows; of plain text, what is beyond the limit makes further examples."""
        cut = self.encode(table, tokenizer, max_length)
        if form_of(self.columns) != "text" or not cut.num_cut:
            return cut
        pieces = [
            tokenize_in_pieces(name, text, tokenizer, max_length)
            for name, text in zip(row_names(table), table["text"], strict=True)
        ]
        examples = list(chain.from_iterable(pieces))
        return Encoded(examples, 0, cut.left_out, note_pieces(len(examples) - len(cut.examples), max_length))

    def _tokenize(
        self, name: str, row: Mapping[str, str | None], tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Tokenized:
        try:
            asked = ask(row, form_of(self.columns), self.prompt or "{source}")
        except UnfitChatError as error:
            return Tokenized(None, reason=str(error))
        return (tokenize_sides if self.is_two_sided else tokenize_reply)(name, asked, tokenizer, max_length)

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> WritingBatch:
        """Pad to the longest of these examples, on the right."""
        ids = _padded([example.inputs["input_ids"] for example in examples], int(tokenizer.pad_token_id), tokenizer)
        lengths = torch.tensor([example.num_tokens for example in examples])
        targets = _padded([example.target.targets for example in examples], IGNORED, tokenizer)
        inputs = {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
        return WritingBatch(
            inputs=inputs | ({"labels": targets} if self.is_two_sided else {}),
            targets=targets,
            rows=tuple(example.row for example in examples),
            num_tokens=sum(example.num_tokens for example in examples)
            + (int((targets != IGNORED).sum()) if self.is_two_sided else 0),
            num_targets=int((targets != IGNORED).sum()),
            prompts=tuple(example.target.prompt for example in examples),
            is_two_sided=self.is_two_sided,
        )

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the cross-entropy of logits; `label_smoothing` is the share of each target spread over all tokens."""
        targets = batch.targets[batch.targets != IGNORED]
        return cross_entropy(outputs, targets, reduction="sum", label_smoothing=label_smoothing)

    def summed_loss(self, model: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the loss, its logits a few at a time."""
        called = self._called(model, batch)
        return target_loss(model, called.inputs, called.chosen, called.targets, label_smoothing)

    def outputs(self, model: Any, batch: Batch) -> Tensor:
        """Give the logits of the tokens that are learned, [targets, vocabulary], in the order of the batch."""
        called = self._called(model, batch)
        logits = target_logits(model, called.inputs, called.chosen)
        return logits if called.order is None else logits[called.order]

    def _called(self, model: Any, batch: Batch) -> "_Called":
        """Give what a model is called with for a batch."""
        chosen = batch.targets != IGNORED
        targets = batch.targets[chosen]
        if self.is_two_sided:
            inputs = {key: value for key, value in batch.inputs.items() if key != "labels"}
            inputs |= {"decoder_input_ids": _decoder_ids(model, batch.targets)}
            return _Called(inputs, chosen, targets)
        mask = batch.inputs["attention_mask"]
        if self.packing and can_pack(model):
            packed = pack(mask)
            if packed.num_rows < mask.shape[0]:
                order = packed.order(chosen)
                inputs = packed.inputs(batch.inputs["input_ids"])
                return _Called(inputs, packed.rows_of(chosen), targets[order.argsort()], order)
        return _Called(batch.inputs, chosen, targets)

    def answers(self, model: Any, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> list[Written]:
        """Give the loss of every example, and what the model writes behind its prompt."""
        assert isinstance(batch, WritingBatch)
        losses = torch.cat(
            [self._losses(model, part) for part in _parts(batch, int(model.config.get_text_config().vocab_size))]
        )
        counts = (batch.targets != IGNORED).sum(1).tolist()
        asked = [n for n, prompt in enumerate(batch.prompts) if prompt]
        texts: dict[int, str] = {}
        if asked:
            prompts = [batch.prompts[n] for n in asked]
            written = write_answers(model, prompts, tokenizer, self.max_new_tokens)
            texts = dict(zip(asked, written, strict=True))
        return [Written(loss, counts[n], texts.get(n)) for n, loss in enumerate(losses.tolist())]

    def _losses(self, model: Any, batch: Batch) -> Tensor:
        """Give the loss of every example, summed over its tokens; [examples] in main memory."""
        chosen = batch.targets != IGNORED
        sums = torch.zeros(len(batch.rows), dtype=torch.float64)
        if not chosen.any():
            return sums
        each = cross_entropy(self.outputs(model, batch), batch.targets[chosen], reduction="none")
        return sums.index_add(0, chosen.nonzero()[:, 0].cpu(), each.cpu().double())

    def figures(self, answers: Sequence[Written], examples: Sequence[Example]) -> np.ndarray:
        """Give loss and tokens of every row, whether an answer was written, and the numbers of each score of it."""
        scores = self._scores
        empty = [0.0] * sum(score.size for score in scores.values())
        rows = []
        for answer, example in zip(answers, examples, strict=True):
            text, wanted = answer.text, example.target.wanted
            is_compared = text is not None and wanted is not None and bool(scores)
            found = [n for score in scores.values() for n in score.figures(text or "", wanted or "")]
            rows.append(
                [answer.loss, float(answer.num_targets), float(is_compared), *(found if is_compared else empty)]
            )
        return np.array(rows)

    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give the mean loss of a token, the scores of the answers that were written, and perplexity: e to the loss."""
        sums = figures.sum(axis=0)
        loss = float(sums[0] / max(sums[1], 1.0))
        values, place = {"loss": loss}, 3
        for name, score in self._scores.items():
            values[name] = score.value(sums[place : place + score.size], float(sums[2])) if sums[2] else math.nan
            place += score.size
        return values | {"perplexity": math.exp(min(loss, LARGEST_EXPONENT))}

    def details(self, answers: Sequence[Written], examples: Sequence[Example], figures: np.ndarray) -> dict[str, Any]:
        """Give the first answers beside what was wanted, and how many were compared with it."""
        pairs = zip(answers, examples, strict=True)
        written = [
            {"row": example.row, "wanted": example.target.wanted, "answer": answer.text}
            for answer, example in pairs
            if answer.text is not None and example.target.wanted is not None
        ]
        return {"answers": written[:NUM_SHOWN], "answers_compared": len(written)} if written else {}

    def table(self, answers: Sequence[Written], examples: Sequence[Example]) -> pl.DataFrame:
        """Give the column `answer`; for plain text `loss`, `perplexity` and the number of `tokens` that are learned."""
        if form_of(self.columns) != "text":
            return pl.DataFrame({"answer": [answer.text for answer in answers]}, schema={"answer": pl.String})
        losses = [answer.loss / max(answer.num_targets, 1) for answer in answers]
        return pl.DataFrame(
            {
                "loss": losses,
                "perplexity": [math.exp(min(loss, LARGEST_EXPONENT)) for loss in losses],
                "tokens": [answer.num_targets for answer in answers],
            },
            schema={"loss": pl.Float64, "perplexity": pl.Float64, "tokens": pl.Int64},
        )

    @property
    def _scores(self) -> dict[str, TextScore]:
        """Give the scores of written answers, none where no answers are written."""
        is_answered = self.generate > 0 and form_of(self.columns) != "text"
        return text_scores(self.metrics, self.bleu_words) if is_answered else {}


def _decoder_ids(model: Any, targets: Tensor) -> Tensor:
    """Give what a decoder reads where it is to write these targets: every token but the last, behind the one it starts.

    A few models (M2M100, and so NLLB) have no word of their own for that in transformers 5.23.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        ids: Tensor = model.prepare_decoder_input_ids_from_labels(labels=targets)
        return ids
    ids = targets.roll(1, dims=1)
    ids[:, 0] = model.config.decoder_start_token_id
    return ids.masked_fill(ids == IGNORED, model.config.pad_token_id)


def _padded(rows: Sequence[Sequence[int]], padding: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Give rows padded on the right, [rows, length]."""
    padded = np.full((len(rows), padded_length(max(map(len, rows)), tokenizer)), padding)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)


def _parts(batch: WritingBatch, vocabulary: int) -> Iterator[WritingBatch]:
    """Cut a batch into parts whose logits are not too many at once."""
    step = max(1, LOGITS_AT_ONCE // (vocabulary * batch.targets.shape[1]))
    for start in range(0, len(batch.rows), step):
        chosen = slice(start, start + step)
        yield replace(
            batch,
            inputs={key: value[chosen] for key, value in batch.inputs.items()},
            targets=batch.targets[chosen],
            rows=batch.rows[chosen],
            prompts=batch.prompts[chosen],
        )
