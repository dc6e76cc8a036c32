"""Frozen layers, found in every architecture, give the same whether they run or are stood in for."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from alloytune.machine import Machine
from alloytune.models.frozen_prefix import FrozenPrefix, find_frozen_prefix
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.roles import Roles
from alloytune.models.state import ModelState
from alloytune.models.weights import free_only, named_weights
from alloytune.tasks.classification import Classification
from alloytune.train.prefix_reader import Reading, agrees
from architectures import ARCHITECTURES

TASK = Classification(("bad", "good"))
EXACT = Machine(torch.device("cpu"), torch.float32)
TABLE = tiny.make_table(40)
NOT_CUT = {"albert": "its layers are one", "xlnet": "its rows stand in columns"}


def load(name: str, folder: Path) -> tuple[ModelState, Reading, list[Any]]:
    source = str(ARCHITECTURES[name].save(folder))
    tokenizer = load_tokenizer(source)
    model, fresh = load_model(TASK.auto_class, source, tokenizer, 0, **TASK.config)
    examples = TASK.encode(TABLE, tokenizer, 30).examples
    order = sorted(examples, key=lambda example: example.num_tokens)
    return (
        ModelState(model, fresh),
        Reading(partial(TASK.collate, tokenizer=tokenizer), TASK.outputs, EXACT),
        [order[0], order[20], order[-1]],
    )


def find(state: ModelState, reading: Reading, examples: list[Any], moving: frozenset[str]) -> FrozenPrefix | None:
    free_only(state.model, moving)
    state.model.eval()
    return find_frozen_prefix(
        state.model, state.roles(), lambda: reading.outputs_of(state.model, reading.collate(examples))
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    state, reading, examples = load(name, tmp_path)
    roles = state.roles()
    prefix = find(state, reading, examples, roles.stacks["layers"][-1] | state.head)
    if name == "albert":
        assert prefix is None
        return
    assert prefix is not None
    print(name, prefix.num_layers, [c.forms for c in prefix.chains], [type(c.entry).__name__ for c in prefix.chains])
    assert prefix.num_layers == len(roles.stacks["layers"]) - 1
    assert agrees(prefix, reading, examples) or agrees(prefix.without_entries(), reading, examples)
    print(agrees(prefix, reading, examples))
