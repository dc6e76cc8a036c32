"""The loop: what moves, what stays, and what stops it."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from alloytune.errors import NotFiniteError
from alloytune.machine import Machine
from alloytune.models.adapters import Attachment
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.methods import LoraSettings
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, free_only, named_weights
from alloytune.selection import resolve
from alloytune.tasks.task import Example
from alloytune.train.batches import Updates
from alloytune.train.clip import make_clip
from alloytune.train.loop import Step, training_steps
from alloytune.train.moving import Group, Moving, Still, make_optimizer
from tiny import TASK

FLOAT32 = Machine(torch.device("cpu"), torch.float32)
BFLOAT16 = Machine(torch.device("cpu"), torch.bfloat16)
LORA = LoraSettings(rank=2, alpha=4, dropout=0.0)


def train(
    state: ModelState,
    folder: Path,
    selection: str,
    *,
    updates: int = 4,
    micro_batch: int = 8,
    rate: float = 1e-2,
    machine: Machine = FLOAT32,
    seed: int = 3,
) -> list[Step]:
    """Train a selection for some updates of 8 examples."""
    tokenizer = load_tokenizer(str(folder))
    examples = TASK.encode(tiny.make_table(40), tokenizer, 32).examples
    names = resolve(selection, state.roles(), "train")
    free_only(state.model, names)
    weights = named_weights(state.model)
    moving = Moving((Group(tuple(sorted(names)), rate, 0.1),))
    series = Updates(examples, 8, micro_batch, seed, partial(TASK.collate, tokenizer=tokenizer))
    steps = training_steps(
        state.model,
        make_optimizer(moving, weights),
        series.after(0),
        TASK.summed_loss,
        machine,
        still=lambda number: Still(moving.masks, weights),
        multiplier=lambda update: 1.0,
        clip=make_clip(1.0),
        seed=seed,
    )
    return [next(steps) for _ in range(updates)]


def bits(state: ModelState) -> dict[str, bytes]:
    weights = copy_weights(state.model, named_weights(state.model))
    return {name: weight.numpy().tobytes() for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("selection", "attached"),
    [
        ("all", False),
        ("layers[-1:] | head", False),
        ("head", False),
        ("bias | norm", False),
        ("embeddings", False),
        ("attention & layers[0]", False),
        ("adapter | head", True),
        ("all | adapter", True),
        ("layers[1] | adapter | head", True),
    ],
)
@pytest.mark.parametrize("machine", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_exactly_the_selection_moves(
    state: ModelState, bert: Path, selection: str, attached: bool, machine: Machine
) -> None:
    if attached:
        state.attach(Attachment("lora", LORA, resolve("attention | mlp", state.roles(), "on"), 1), "attach")
    chosen = resolve(selection, state.roles(), "train")
    before = bits(state)
    train(state, bert, selection, machine=machine)
    after = bits(state)
    still = {name for name in before if before[name] == after[name]}
    assert not still & chosen - {"bert.embeddings.token_type_embeddings.weight"}
    assert still >= set(before) - chosen


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 7])
def test_micro_batches_change_nothing(tmp_path: Path, micro_batch: int) -> None:
    folder = tiny.save_bert(tmp_path / "bert", dropout=0.0)
    ends = []
    for size in (8, micro_batch):
        model, fresh = load_model(TASK.auto_class, str(folder), load_tokenizer(str(folder)), 0, **TASK.config)
        state = ModelState(model, fresh)
        steps = train(state, folder, "all", micro_batch=size, rate=1e-3)
        ends.append((steps, copy_weights(model, named_weights(model))))
    (whole_steps, whole), (split_steps, split) = ends
    for one, other in zip(whole_steps, split_steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
        assert one.num_targets == other.num_targets == 8
    # Adam turns a gradient of pure rounding into a step of the full rate, so weights are held to a part of one step
    moved = torch.cat([(whole[name] - split[name]).abs().flatten() for name in whole])
    assert moved.quantile(0.99) < 2e-5
    assert moved.max() < 4e-3


class Casts(TorchDispatchMode):
    """Counts how often a weight is cast to another type."""

    def __init__(self, state: ModelState) -> None:
        super().__init__()
        self.counts = Counter[str]()
        self._names = {weight.data_ptr(): name for name, weight in named_weights(state.model).items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self._names:
            self.counts[self._names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_weights_are_cast_once_an_update_however_it_is_split(state: ModelState, bert: Path, micro_batch: int) -> None:
    with Casts(state) as casts:
        train(state, bert, "all", updates=2, micro_batch=micro_batch, machine=BFLOAT16)
    assert len(casts.counts) > 20
    assert set(casts.counts.values()) == {2}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(bert: Path) -> None:
    ends = []
    for seed in (3, 3, 4):
        model, fresh = load_model(TASK.auto_class, str(bert), load_tokenizer(str(bert)), 0, **TASK.config)
        state = ModelState(model, fresh)
        train(state, bert, "all", seed=seed)
        ends.append(bits(state))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_nan_stops_before_the_update_and_names_it_and_its_rows(state: ModelState, bert: Path) -> None:
    train(state, bert, "all", updates=2)
    with torch.no_grad():
        named_weights(state.model)["classifier.weight"][0, 0] = float("nan")
    before = bits(state)
    with pytest.raises(NotFiniteError, match=r"update 1: the loss is nan.*Rows of this update: \d+, "):
        train(state, bert, "all", updates=1)
    assert bits(state) == before


def test_an_infinite_gradient_stops_too(state: ModelState, bert: Path) -> None:
    def exploding(model: torch.nn.Module, batch: object) -> torch.Tensor:
        # each of the head's 32 gradients is finite, their norm is not
        return TASK.summed_loss(model, batch) + model.classifier.weight.sum() * 3e38  # type: ignore[arg-type]

    free_only(state.model, frozenset(named_weights(state.model)))
    weights = named_weights(state.model)
    tokenizer = load_tokenizer(str(bert))
    examples: list[Example] = TASK.encode(tiny.make_table(8), tokenizer, 32).examples
    series = Updates(examples, 8, 8, 0, partial(TASK.collate, tokenizer=tokenizer))
    before = bits(state)
    moving = Moving((Group(tuple(weights), 1e-3, 0.0),))
    steps = training_steps(
        state.model,
        make_optimizer(moving, weights),
        series.after(0),
        exploding,
        FLOAT32,
        still=lambda number: Still(moving.masks, weights),
        multiplier=lambda update: 1.0,
        clip=make_clip(1.0),
        seed=0,
    )
    with pytest.raises(NotFiniteError, match="update 1: the gradient's norm is inf"):
        next(steps)
    assert bits(state) == before


def test_training_learns(state: ModelState, bert: Path) -> None:
    steps = train(state, bert, "all", updates=80, rate=3e-3)
    assert sum(step.loss for step in steps[-5:]) / 5 < 0.3 < steps[0].loss
