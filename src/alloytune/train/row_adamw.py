"""AdamW over tables of which an update reaches few rows, such as the embeddings of a vocabulary.

A batch names a few hundred tokens of tens or hundreds of thousands. Their gradient is sparse, and only rows that a
gradient has ever reached have a memory: to all others AdamW without decay does nothing.
"""

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

LEAST_ROWS = 4096  # of a table that is worth it
MOST_APART = 0.5  # of a table's rows that are remembered apart; beyond, the whole table takes less time
GROWTH = 1.5  # by which room for the memory of rows grows
_MEMORY = ("exp_avg", "exp_avg_sq")


def lookup_tables(model: nn.Module) -> frozenset[str]:
    """Name the large weights that a model uses as lookup tables alone; one tied to an output layer is not."""
    holders: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            holders.setdefault(weight, []).append(module)
    return frozenset(
        name
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and len(weight) >= LEAST_ROWS and all(map(_only_looks_up, holders[weight]))
    )


def _only_looks_up(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq


@contextmanager
def sparse_gradients(model: nn.Module, tables: Set[nn.Parameter]) -> Iterator[None]:
    """Let backward passes give these tables sparse gradients."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding) and module.weight in tables]
    for module in modules:
        module.sparse = True
    try:
        yield
    finally:
        for module in modules:
            module.sparse = False


def gradient_values(weight: nn.Parameter) -> Tensor:
    """Give the numbers of a weight's gradient, to read and to change: all of them, or those of the rows reached."""
    assert weight.grad is not None
    if not weight.grad.is_sparse:
        return weight.grad
    weight.grad = weight.grad.coalesce()
    return weight.grad.values()


class RowAdamW(torch.optim.Optimizer):
    """AdamW without decay. Its memory of a table is that of the `rows` that gradients have reached.

    A row that was reached once goes on by its memory, as under AdamW over the whole table: the result is the same.
    Once that holds most of a table, it is one of the whole table.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas, "eps": 1e-8, "fused": True})
        self._memories: dict[nn.Parameter, _Memory] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the tables that have a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group)

    def _update(self, table: nn.Parameter, group: Mapping[str, Any]) -> None:
        reached, values = _rows_and_values(table)
        state = self.state[table]
        memory = self._memories.get(table)
        if memory is None or not memory.is_of(state):  # at first; put back from a checkpoint; forgotten
            memory = self._memories[table] = _Memory(table, state)
        gradient = memory.take(reached, values)
        moved = table.detach() if memory.is_whole else table[state["rows"]]
        beta1, beta2 = group["betas"]
        adamw(
            *([moved], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]]),
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        if not memory.is_whole:
            table.index_copy_(0, state["rows"], moved)


class _Memory:
    """What is remembered of a table's rows, in `state`, with room for more, and where each of them stands there.

    `is_whole`: all rows stand there, in the table's order.
    """

    def __init__(self, table: Tensor, state: dict[str, Any]) -> None:
        self._table, self._state = table, state
        rows = state.get("rows", torch.empty(0, dtype=torch.long, device=table.device))
        everything = torch.arange(len(table), device=table.device)
        self._places = torch.full_like(everything, -1)
        self._places[rows] = everything[: len(rows)]
        self._room: dict[str, Tensor] = {}
        self._last = rows[:0]  # places that the gradient of before has
        self.is_whole = bool(len(rows) == len(table) and torch.equal(rows, everything))
        state.setdefault("step", table.new_zeros(()))
        self._hold({"rows": rows, **{entry: state.get(entry, table.new_empty(0, table.shape[1])) for entry in _MEMORY}})

    def is_of(self, state: Mapping[str, Any]) -> bool:
        """Tell whether a state is still the one that this holds."""
        return self._state is state and all(state.get(entry) is self._shown[entry] for entry in ("rows", *_MEMORY))

    def take(self, reached: Tensor, values: Tensor) -> Tensor:
        """Give the gradient of all rows that are remembered, those that it reaches among them by now."""
        fresh = reached[self._places[reached] < 0]
        if len(fresh):
            self._add(fresh)
        gradient = self._gradient[: len(self._shown["rows"])]
        gradient[self._last] = 0
        self._last = self._places[reached]
        gradient[self._last] = values
        return gradient

    def _add(self, fresh: Tensor) -> None:
        known = len(self._shown["rows"])
        if known + len(fresh) > MOST_APART * len(self._table):
            self._hold({**whole(self._state, self._table), "rows": torch.arange(len(self._table)).to(fresh)})
            self._places, self.is_whole = self._shown["rows"].clone(), True
            return
        self._places[fresh] = torch.arange(known, known + len(fresh), device=fresh.device)
        if known + len(fresh) > len(self._room["rows"]):
            self._hold(self._shown, room=GROWTH * (known + len(fresh)))
        self._room["rows"][known : known + len(fresh)] = fresh
        for entry in _MEMORY:
            self._room[entry][known : known + len(fresh)] = 0
        self._show(known + len(fresh))

    def _hold(self, given: Mapping[str, Tensor], room: float = 0) -> None:
        """Keep these, with room for so many rows."""
        number = len(given["rows"])
        size = min(max(int(room), number), len(self._table))
        for entry in ("rows", *_MEMORY):
            self._room[entry] = given[entry]
            if size > number:
                self._room[entry] = given[entry].new_empty(size, *given[entry].shape[1:])
                self._room[entry][:number] = given[entry]
        self._gradient = self._table.new_zeros(size, self._table.shape[1])
        self._last = self._last[:0]
        self._show(number)

    def _show(self, number: int) -> None:
        """Let the state have what is held."""
        self._shown = {entry: self._room[entry][:number] for entry in ("rows", *_MEMORY)}
        self._state.update(self._shown)


def _rows_and_values(table: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Give the rows that a gradient reaches, and it; all of them where something else than a lookup gave it."""
    assert table.grad is not None
    if not table.grad.is_sparse:
        return torch.arange(len(table), device=table.device), table.grad
    values = gradient_values(table)
    return table.grad.indices()[0], values


def by_rows(state: Mapping[str, Any]) -> dict[str, Any]:
    """Give AdamW's memory of a whole table as that of all its rows; what is by rows already stays as it is."""
    if "exp_avg" not in state or "rows" in state:
        return dict(state)
    return {**state, "rows": torch.arange(len(state["exp_avg"]), device=state["exp_avg"].device)}


def whole(state: Mapping[str, Any], table: Tensor) -> dict[str, Any]:
    """Give a memory by rows as that of the whole table; what is whole already stays as it is."""
    if "rows" not in state:
        return dict(state)
    spread = {entry: torch.zeros_like(table).index_copy_(0, state["rows"], state[entry]) for entry in _MEMORY}
    return {entry: value for entry, value in {**state, **spread}.items() if entry != "rows"}
