"""Answers of a model to a whole split, in the split's order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alloytune.errors import NotFiniteError
from alloytune.machine import Machine
from alloytune.tasks.task import Batch, Example, Scores, Task, scores_of
from alloytune.tasks.tokenized import count_tokens

ROWS_PER_BATCH = 64


@torch.inference_mode()
def predict(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    machine: Machine,
) -> list[Any]:
    """Give the task's answers, one for each example; neighbours in length share a batch."""
    was_training = model.training
    model.eval()
    order = np.argsort(-count_tokens(examples), kind="stable").tolist()
    answers: dict[int, Any] = {}
    for start in range(0, len(order), ROWS_PER_BATCH):
        chosen = order[start : start + ROWS_PER_BATCH]
        batch = task.collate([examples[n] for n in chosen], tokenizer)
        with machine.autocast():
            found = task.answers(model, batch.to(machine.device), tokenizer)
        answers.update(zip(chosen, found, strict=True))
    model.train(was_training)
    return [answers[n] for n in range(len(examples))]


@torch.inference_mode()
def raw_outputs(model: nn.Module, batch: Batch, machine: Machine) -> np.ndarray:
    """Give what the model itself puts out first for a batch, in float32: logits, or hidden states where it has no head.

    The same as `alloytune.models.reload` compares.
    """
    was_training = model.training
    model.eval()
    with machine.autocast():
        found = model(**batch.to(machine.device).inputs)
    model.train(was_training)
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
