"""Preferences: of two answers to a prompt the chosen one shall become likelier, by DPO (Rafailov et al. 2023)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from scipy.special import expit
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alloytune.data.rules import Rules
from alloytune.errors import InputError
from alloytune.tasks.dialogue import (
    UnfitChatError,
    give_template,
    has_own_template,
    mark_answers,
    read_messages,
)
from alloytune.tasks.dpo import answer_logps, dpo_losses
from alloytune.tasks.marked import Cut, Marked, cut, last_answer, mark_after
from alloytune.tasks.masking import IGNORED
from alloytune.tasks.objectives import objective_of
from alloytune.tasks.pairs import SIDES, STAND_INS, is_structured, read_answer, sift_pairs
from alloytune.tasks.target_logits import target_logits
from alloytune.tasks.task import Batch, Encoded, Example, Task
from alloytune.tasks.texts import pad_inputs, row_names

_NO_REFERENCE = (0.0, 0.0)


@dataclass(frozen=True)
class Pair:
    """Both texts of an example, chosen first, as lengths in tokens and where each answer begins.

    `reference` are the answers' log-probabilities by the weights that the loss compares with, once they are known.
    """

    lengths: tuple[int, int]
    starts: tuple[int, int]
    reference: tuple[float, float] = _NO_REFERENCE


@dataclass(frozen=True)
class PairBatch(Batch):
    """A batch of pairs: all chosen texts, then all rejected ones; `reference`: [pairs, 2]."""

    reference: Tensor = field(default_factory=lambda: torch.zeros(0, 2))

    def to(self, device: torch.device) -> "PairBatch":
        """Give the same batch on a device."""
        moved = super().to(device)
        assert isinstance(moved, PairBatch)
        return replace(moved, reference=self.reference.to(device))


@dataclass(frozen=True)
class Preference(Task):
    """Pairs of answers; the loss is DPO's, one target per pair.

    What it compares with are the weights at the start of the stage, whose log-probabilities are computed once, so that
    there is no second model in memory; scores compare with the pretrained weights. A larger `beta` holds the model
    nearer to them.
    """

    beta: float
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    pipeline: ClassVar[str] = "text-generation"

    @classmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Ask for two different answers to every prompt. No prompt stands in two splits."""
        # blanks where prompt and answer meet are part of them
        return Rules(texts=("prompt",), answers=SIDES, strips=False, sift=sift_pairs, stand_ins=STAND_INS)

    @classmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Take the settings; the rows teach nothing more."""
        return cls(settings["beta"])

    @classmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Take the settings."""
        return cls(settings["beta"])

    @classmethod
    def blank(cls) -> Self:
        """Give the task with the usual beta."""
        return cls(0.1)

    def fitted(self, source: str) -> Self:
        """Ask for a decoder."""
        if objective_of(source) != "next":
            raise InputError("model", f"{source!r} does not write answers", "choose a decoder, such as Llama or GPT-2")
        return self

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize prompt with each answer. What is too long loses the prompt's beginning, the same in both texts."""
        if not set(SIDES) <= set(table.columns):
            what = "a model of preferences weighs two answers to a prompt, and one is not there"
            raise InputError("preference", what, "give chosen and rejected, or let it write with generate")
        notes = _note_texts(table["prompt"]) if has_own_template(tokenizer) else ()
        give_template(tokenizer)
        examples, left_out, num_cut = [], [], 0
        for name, row in zip(row_names(table), table.to_dicts(), strict=True):
            cuts = _cut_both([_mark(row["prompt"], row[side], tokenizer) for side in SIDES], max_length, tokenizer)
            kept = [one.marked for one in cuts if one.marked is not None]
            if len(kept) < len(cuts):
                left_out.append((name, next(one.reason for one in cuts if one.marked is None)))
                continue
            num_cut += any(one.is_cut for one in cuts)
            lengths, starts = (
                tuple(values) for values in zip(*((len(m.ids), last_answer(m)) for m in kept), strict=True)
            )
            inputs = {"input_ids": [token for marked in kept for token in marked.ids]}
            examples.append(Example(name, inputs, Pair(lengths, starts)))
        return Encoded(examples, num_cut, tuple(left_out), notes)

    def anchored(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> list[Example]:
        """Give the examples with the log-probabilities that the loss compares with."""
        return [
            replace(example, target=replace(example.target, reference=tuple(answer[:2].tolist())))
            for answer, example in zip(answers, examples, strict=True)
        ]

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> PairBatch:
        """Pad both texts of every example; a target is the token of an answer, IGNORED elsewhere."""
        texts = [ids for side in (0, 1) for ids in (_side(example, side) for example in examples)]
        starts = [example.target.starts[side] for side in (0, 1) for example in examples]
        padded = pad_inputs([{"input_ids": ids} for ids in texts], tokenizer, "right")
        places = torch.arange(padded["input_ids"].shape[1])
        is_answer = (places >= torch.tensor(starts)[:, None]) & padded["attention_mask"].bool()
        return PairBatch(
            inputs=padded,
            targets=padded["input_ids"].masked_fill(~is_answer, IGNORED),
            rows=tuple(example.row for example in examples),
            num_tokens=sum(example.num_tokens for example in examples),
            num_targets=len(examples),
            reference=torch.tensor([example.target.reference for example in examples]),
        )

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the loss of log-probabilities [pairs, 2]."""
        assert isinstance(batch, PairBatch)
        return dpo_losses(outputs, batch.reference, self.beta).sum()

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the log-probabilities of chosen and rejected answers, [pairs, 2]."""
        before = torch.zeros_like(batch.targets, dtype=torch.bool)
        before[:, :-1] = batch.targets[:, 1:] != IGNORED
        logits = target_logits(model, batch.inputs, before)
        texts = before.nonzero()[:, 0]
        logps = answer_logps(logits, batch.targets[batch.targets != IGNORED], texts, len(batch.targets))
        return logps.view(2, -1).T

    def answers(self, model: nn.Module, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Sequence[np.ndarray]:
        """Give of every example the log-probabilities of both answers and their lengths in tokens, [4]."""
        logps = self.outputs(model, batch)
        lengths = (batch.targets != IGNORED).sum(1).view(2, -1).T
        return list(torch.cat([logps, lengths], dim=1).cpu().numpy())

    def figures(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> np.ndarray:
        """Give by how much the chosen answer is likelier per token, and how much more it has gained, [rows, 2]."""
        if not len(answers):
            return np.empty((0, 2))
        found = np.stack(answers).astype(np.float64)
        reference = np.array([example.target.reference for example in examples])
        per_token = found[:, :2] / found[:, 2:]
        gained = self.beta * (found[:, :2] - reference)
        return np.column_stack([per_token[:, 0] - per_token[:, 1], gained[:, 0] - gained[:, 1]])

    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give the accuracies, the mean margin and the mean loss.

        `accuracy`: how often the chosen answer is the likelier one, by the mean log-probability of its tokens;
        `reward_accuracy`: how often it has gained more than the rejected one on the weights compared with (half a time
        where nothing has moved); `margin`: by how much, times beta.
        """
        nearer, margins = figures.T
        return {
            "accuracy": float((nearer > 0).mean()),
            "margin": float(margins.mean()),
            "reward_accuracy": float((np.sign(margins) / 2 + 0.5).mean()),
            "loss": float(np.logaddexp(0, -margins).mean()),
        }

    def table(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> pl.DataFrame:
        """Give the preferred answer, and how sure the model is of the chosen one by DPO's reading of it."""
        figures = self.figures(answers, examples).reshape(-1, 2)
        preferred = [SIDES[0] if nearer > 0 else SIDES[1] for nearer in figures[:, 0]]
        columns = {"preferred": preferred, "margin": figures[:, 1], "probability": expit(figures[:, 1])}
        return pl.DataFrame(columns, schema_overrides={"preferred": pl.String})


TASK = Preference


def _note_texts(prompts: Iterable[str]) -> tuple[str, ...]:
    """Say how many prompts are texts, which a model that has a chat template is not used to."""
    number = sum(not is_structured(prompt) for prompt in prompts)
    what = "as texts, not in the model's chat template; write messages to have it"
    return (f"{number:,} prompts are taken {what}",) if number else ()


def _mark(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Marked | None:
    """Tokenize a prompt with an answer: a conversation by the chat template, a text as it stands."""
    if not is_structured(prompt):
        return mark_after(prompt, read_answer(answer), tokenizer)
    messages = [*read_messages(prompt), {"role": "assistant", "content": read_answer(answer)}]
    try:
        return mark_answers(messages, tokenizer)
    except UnfitChatError:
        return None


def _cut_both(both: Iterable[Marked | None], max_length: int | None, tokenizer: PreTrainedTokenizerBase) -> list[Cut]:
    """Take the same number of tokens off the beginning of both texts."""
    marked = [one for one in both if one is not None]
    if len(marked) < len(SIDES):
        return [Cut(None, reason="the chat template refuses the conversation")]
    longest = max(len(one.ids) for one in marked)
    return [cut(one, max_length and max_length - longest + len(one.ids), tokenizer) for one in marked]


def _side(example: Example, side: int) -> list[int]:
    first = example.target.lengths[0]
    ids = example.inputs["input_ids"]
    return ids[:first] if side == 0 else ids[first:]
