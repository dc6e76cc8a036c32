"""AdamW by rows: the same as AdamW over the whole table."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from alloytune.machine import Machine
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.state import ModelState
from alloytune.models.weights import free_only, named_weights
from alloytune.train import row_adamw
from alloytune.train.batches import Updates
from alloytune.train.clip import make_clip
from alloytune.train.loop import training_steps
from alloytune.train.memory import OptimizerState, optimizer_state, put_optimizer_state
from alloytune.train.moving import Group, Moving, Still, make_optimizer
from alloytune.train.optimizers import Optimizer
from alloytune.train.row_adamw import RowAdamW, lookup_tables, sparse_gradients
from tiny import TASK

ROWS, WIDTH = 50, 16
IDS = [[3, 7, 7, 1], [7, 9], [20, 3, 21, 21, 21], [1], [40, 41, 3]]


class Net(nn.Module):
    """A table of which texts look rows up, and a layer above it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(ROWS, WIDTH)
        self.top = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(self.table(ids).tanh()).logsumexp(-1).sum()


def optimizer_of(net: Net, *, by_rows: bool) -> Optimizer:
    moving = Moving((Group(("table.weight",), 0.1, 0.0, "embeddings"), Group(("top.weight", "top.bias"), 0.1, 0.0)))
    tables = frozenset({"table.weight"}) if by_rows else frozenset()
    return make_optimizer(moving, dict(net.named_parameters()), tables=tables)


def update(net: Net, optimizer: Optimizer, ids: list[int], clip: float = 0.5) -> float:
    with sparse_gradients(net, optimizer.tables):
        for half in (ids[::2], ids[1::2]):  # two micro-batches
            net(torch.tensor(half, dtype=torch.long)).backward()
    norm = float(make_clip(clip)(optimizer.param_groups))
    optimizer.step()
    optimizer.zero_grad()
    return norm


def test_the_same_as_over_the_whole_table() -> None:
    ours, whole = Net(), Net()
    by_rows, plain = optimizer_of(ours, by_rows=True), optimizer_of(whole, by_rows=False)
    before = ours.table.weight.detach().clone()
    for ids in IDS * 3:
        assert update(ours, by_rows, ids) == pytest.approx(update(whole, plain, ids), rel=1e-6)
        torch.testing.assert_close(ours.table.weight, whole.table.weight, rtol=1e-6, atol=1e-7)
    named = sorted({number for ids in IDS for number in ids})
    others = [number for number in range(ROWS) if number not in named]
    assert torch.equal(ours.table.weight[others], before[others])
    (part,) = (part for part in by_rows.parts if isinstance(part, RowAdamW))
    memory = part.state[ours.table.weight]
    assert sorted(memory["rows"].tolist()) == named
    assert memory["exp_avg"].shape == memory["exp_avg_sq"].shape == (len(named), WIDTH)


def test_a_table_of_which_most_has_been_reached_is_updated_whole() -> None:
    """The memory grows with room to spare until then; the result is the same, after a resume to the bit."""
    ids = [list(range(n, n + 7)) for n in range(0, ROWS - 7, 4)]
    ours, plain_net = Net(), Net()
    by_rows, plain = optimizer_of(ours, by_rows=True), optimizer_of(plain_net, by_rows=False)
    (part,) = (part for part in by_rows.parts if isinstance(part, RowAdamW))
    sizes = []
    for each in ids:
        update(ours, by_rows, each)
        update(plain_net, plain, each)
        torch.testing.assert_close(ours.table.weight, plain_net.table.weight, rtol=1e-6, atol=1e-7)
        sizes.append(len(part.state[ours.table.weight]["rows"]))
    assert sizes[0] == 7
    assert max(size for size in sizes if size < ROWS) <= ROWS // 2
    assert sizes[-1] == ROWS
    assert torch.equal(part.state[ours.table.weight]["rows"], torch.arange(ROWS))
    for end in (3, len(ids) - 2):
        left = Net()
        before = optimizer_of(left, by_rows=True)
        for each in ids[:end]:
            update(left, before, each)
        state = optimizer_state(before, dict(left.named_parameters()))
        resumed = Net()
        resumed.load_state_dict(left.state_dict())
        after = optimizer_of(resumed, by_rows=True)
        put_optimizer_state(after, dict(resumed.named_parameters()), state)
        for each in ids[end:]:
            update(resumed, after, each)
        assert torch.equal(resumed.table.weight, ours.table.weight), end


def test_a_gradient_that_no_lookup_gave() -> None:
    ours, whole = Net(), Net()
    by_rows, plain = optimizer_of(ours, by_rows=True), optimizer_of(whole, by_rows=False)
    for net, optimizer in ((ours, by_rows), (whole, plain)):
        update(net, optimizer, IDS[0])
        with sparse_gradients(net, optimizer.tables):
            (net(torch.tensor(IDS[1])) + net.table.weight.square().sum()).backward()
        make_clip(0.5)(optimizer.param_groups)
        optimizer.step()
    torch.testing.assert_close(ours.table.weight, whole.table.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_memory_is_put_back_in_either_form(before: bool, after: bool) -> None:
    undisturbed, first = Net(), Net()
    alone, left = optimizer_of(undisturbed, by_rows=True), optimizer_of(first, by_rows=before)
    for ids in IDS[:3]:
        update(undisturbed, alone, ids)
        update(first, left, ids)
    state: OptimizerState = optimizer_state(left, dict(first.named_parameters()))
    second = Net()
    second.load_state_dict(first.state_dict())
    resumed = optimizer_of(second, by_rows=after)
    put_optimizer_state(resumed, dict(second.named_parameters()), state)
    for ids in IDS[3:]:
        update(undisturbed, alone, ids)
        update(second, resumed, ids)
    if before and after:
        assert torch.equal(second.table.weight, undisturbed.table.weight), "the same bits"
    torch.testing.assert_close(second.table.weight, undisturbed.table.weight, rtol=1e-6, atol=1e-7)


def test_what_is_a_lookup_table(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    assert not lookup_tables(net), "too small"
    monkeypatch.setattr(row_adamw, "LEAST_ROWS", ROWS)
    assert lookup_tables(net) == {"table.weight"}
    tied = Net()
    tied.add_module("out", nn.Linear(WIDTH, ROWS))
    tied.out.weight = tied.table.weight  # type: ignore[union-attr, assignment]
    assert not lookup_tables(tied), "an output layer reads all of it"
    twice = Net()
    twice.add_module("other", nn.Embedding(ROWS, WIDTH))
    twice.other.weight = twice.table.weight  # type: ignore[union-attr, assignment]
    assert lookup_tables(twice) == {"table.weight"}


def test_a_decaying_table_is_updated_whole() -> None:
    weights = dict(Net().named_parameters())
    tables = frozenset({"table.weight"})
    decaying = Moving((Group(("table.weight",), 0.1, 0.01, "embeddings"),))
    masked = Moving(
        (Group(("table.weight",), 0.1, 0.0, "embeddings"),), masks={"table.weight": torch.ones(ROWS, WIDTH).bool()}
    )
    assert not make_optimizer(decaying, weights, tables=tables).tables
    assert not make_optimizer(masked, weights, tables=tables).tables


def trained(bert: Path, *, by_rows: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Train all of a model for some updates; rows that no text names must keep their bits."""
    tokenizer = load_tokenizer(str(bert))
    examples = TASK.encode(tiny.make_table(16), tokenizer, 32).examples
    state = ModelState(*load_model(TASK.auto_class, str(bert), tokenizer, 0, **TASK.config))
    weights = named_weights(state.model)
    free_only(state.model, frozenset(weights))
    tables = lookup_tables(state.model) if by_rows else frozenset()
    table = next(name for name in weights if name.endswith("word_embeddings.weight"))
    assert not by_rows or table in tables
    optimizer = make_optimizer(Moving((Group(tuple(sorted(weights)), 1e-2, 0.0),)), weights, tables=tables)
    steps = training_steps(
        state.model,
        optimizer,
        Updates(examples, 8, 3, 3, partial(TASK.collate, tokenizer=tokenizer)).after(0),
        TASK.summed_loss,
        Machine(torch.device("cpu"), torch.float32),
        still=lambda number: Still({}, weights),
        multiplier=lambda update: 1.0,
        clip=make_clip(1.0),
        seed=3,
    )
    before = weights[table].detach().clone()
    losses = [next(steps).loss for _ in range(5)]
    others = torch.ones(len(before), dtype=torch.bool)
    others[sorted({token for example in examples for token in example.inputs["input_ids"]})] = False
    assert others.any()
    assert torch.equal(weights[table][others], before[others])
    assert not any(module.sparse for module in state.model.modules() if isinstance(module, nn.Embedding))
    return losses, {name: weight.detach().clone() for name, weight in weights.items()}


def test_training_a_model_by_rows(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_adamw, "LEAST_ROWS", 20)
    losses, weights = trained(bert, by_rows=True)
    expected, others = trained(bert, by_rows=False)
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-4, atol=1e-5, msg=name)
