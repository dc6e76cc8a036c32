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
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas, "eps": 1e-8, "fused": True})
        self._places: dict[nn.Parameter, Tensor] = {}  # of a table's rows in the memory; -1 where there is none

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the tables that have a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group)

    def _update(self, table: nn.Parameter, group: Mapping[str, Any]) -> None:
        reached, values = _rows_and_values(table)
        places = self._reach(table, reached)
        state = self.state[table]
        gradient = torch.zeros_like(state["exp_avg"])
        gradient[places[reached]] = values
        moved = table[state["rows"]]
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
        table.index_copy_(0, state["rows"], moved)

    def _reach(self, table: nn.Parameter, reached: Tensor) -> Tensor:
        """Give the places of a table's rows in its memory, in which those that are reached have theirs by now."""
        state = self.state[table]
        if not state:
            empty = {entry: table.new_empty(0, table.shape[1]) for entry in _MEMORY}
            state |= {"step": table.new_zeros(()), "rows": reached.new_empty(0), **empty}
        places = self._places.get(table)
        if places is None or int((places >= 0).sum()) != len(state["rows"]):  # put back from a checkpoint, or forgotten
            places = self._places[table] = reached.new_full((len(table),), -1)
            places[state["rows"]] = torch.arange(len(state["rows"]), device=table.device)
        fresh = reached[places[reached] < 0]
        if len(fresh):
            known = len(state["rows"])
            places[fresh] = torch.arange(known, known + len(fresh), device=table.device)
            state["rows"] = torch.cat([state["rows"], fresh])
            for entry in _MEMORY:
                state[entry] = torch.cat([state[entry], table.new_zeros(len(fresh), table.shape[1])])
        return places


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
