"""Outputs of a model for a whole split, in the split's order."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alloytune.errors import NotFiniteError
from alloytune.machine import Machine
from alloytune.tasks.task import Example, Scores, Task

ROWS_PER_BATCH = 64


@torch.inference_mode()
def predict(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    machine: Machine,
) -> np.ndarray:
    """Give the task's outputs, [examples, ...]; neighbours in length share a batch."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(examples)), key=lambda n: -examples[n].num_tokens)
    parts: list[np.ndarray] = []
    for start in range(0, len(order), ROWS_PER_BATCH):
        batch = task.collate([examples[n] for n in order[start : start + ROWS_PER_BATCH]], tokenizer)
        with machine.autocast():
            parts.append(task.outputs(model, batch.to(machine.device)).cpu().numpy())
    model.train(was_training)
    sorted_outputs = np.concatenate(parts)
    outputs = np.empty_like(sorted_outputs)
    outputs[order] = sorted_outputs
    return outputs


def score(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    machine: Machine,
) -> Scores:
    """Score a model on a split whose labels are known; raises NotFiniteError where its outputs are no numbers."""
    outputs = predict(model, task, examples, tokenizer, machine)
    if not np.isfinite(outputs).all():
        raise NotFiniteError(
            "evaluation: the model's outputs are not finite, though its weights are; nothing of it was saved. "
            "A lower rate or a smaller scale usually mends it"
        )
    return task.scores(outputs, np.array([example.target for example in examples]))
