"""Answers of a model to a whole split, in the split's order."""

import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alloytune.errors import NotFiniteError
from alloytune.machine import Machine
from alloytune.tasks.abilities import Sparing
from alloytune.tasks.task import Batch, Example, Scores, Task, scores_of
from alloytune.tasks.tokenized import count_tokens, passes
from alloytune.trying import evaluating

ROWS_PER_PASS = 64
ROWS_COMPARED = 32
TOKENS_COMPARED = 1024  # of theirs, padding included: a language model has a number for each word at each of them


@torch.inference_mode()
def predict(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    machine: Machine,
) -> list[Any]:
    """Give the task's answers, one for each example; neighbours in length share a pass."""
    answers: dict[int, Any] = {}
    with evaluating(model):
        for chosen in scoring_passes(task, examples, machine):
            batch = task.collate([examples[n] for n in chosen], tokenizer)
            with machine.autocast():
                found = task.answers(model, batch.to(machine.device), tokenizer)
            answers.update(zip(chosen, found, strict=True))
    return [answers[n] for n in range(len(examples))]


def scoring_passes(task: Task, examples: Sequence[Example], machine: Machine) -> Iterator[list[int]]:
    """Cut the numbers of examples into passes, longest first.

    They are as small as in training, but for tasks that write, whose passes cost by their number.
    """
    lengths = count_tokens(examples)
    order = np.argsort(-lengths, kind="stable")
    limits = (sys.maxsize, None) if isinstance(task, Sparing) else (machine.pass_tokens, machine.pass_padding)
    for chosen in passes(order, lengths, ROWS_PER_PASS, *limits):
        yield chosen.tolist()


def few_to_compare(examples: Sequence[Example]) -> Sequence[Example]:
    """Give the first rows, at least one, that are not too many to compare what a model puts out for them."""
    longest = accumulate((example.num_tokens for example in examples[:ROWS_COMPARED]), max)
    fitting = [number for number, tokens in enumerate(longest, 1) if number * tokens <= TOKENS_COMPARED]
    return examples[: max(fitting, default=1)]


@torch.inference_mode()
def raw_outputs(model: nn.Module, batch: Batch, machine: Machine) -> np.ndarray:
    """Give what the model itself puts out first for a batch, in float32: logits, or hidden states where it has no head.

    The same as `alloytune.models.reload` compares.
    """
    with evaluating(model), machine.autocast():
        found = model(**batch.to(machine.device).inputs)
    outputs: np.ndarray = (found.logits if "logits" in found else found[0]).float().cpu().numpy()
    return outputs


def score(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    machine: Machine,
) -> Scores:
    """Score a model on validation rows; raises NotFiniteError where its outputs are no numbers.

    What the task chooses on validation is chosen for this model, so that models are compared at their best.
    """
    answers = predict(model, task, examples, tokenizer, machine)
    scores = scores_of(task.tuned(answers, examples), answers, examples)
    if not np.isfinite(np.array(scores.figures)).all():
        raise NotFiniteError(
            "evaluation: the model's outputs are not finite, though its weights are; nothing of it was saved. "
            "A lower rate or a smaller scale usually mends it"
        )
    return scores
