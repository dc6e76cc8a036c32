"""How much memory tensors take while something is computed, counted on real batches."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alloytune.machine import Machine
from alloytune.tasks.task import Batch
from alloytune.train.loop import Loss, add_gradients
from alloytune.train.optimizers import Optimizer


class CountMemory(TorchDispatchMode):
    """Counts what operations put out for as long as anything holds it; `peak` is the most at one time, in bytes.

    What was there before is not counted, nor what an operation needs only within itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.OpOverload):  # one that is made of others shows what they put out
            with self:
                found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        given = {id(storage) for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if id(storage) not in given | self._counted:
                self._count(storage)
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = id(storage), storage.nbytes()
        self._counted.add(key)
        self._held += num_bytes
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._release, key, num_bytes)

    def _release(self, key: int, num_bytes: int) -> None:
        self._counted.discard(key)
        self._held -= num_bytes


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield value.untyped_storage()


def count_activations(model: nn.Module, micro_batches: list[Batch], summed_loss: Loss, machine: Machine) -> int:
    """Count the most that the forward and backward passes of an update hold, in bytes, gradients of weights aside.

    Frozen layers below everything that moves save nothing. Nothing is trained.
    """
    model.train()
    with _without_gradients(model), CountMemory() as counter:
        add_gradients(model, micro_batches, summed_loss, machine)
    return int(counter.peak)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Drop every gradient of a weight as soon as it is there."""

    def drop(weight: Tensor) -> None:
        weight.grad = None

    hooks = [weight.register_post_accumulate_grad_hook(drop) for weight in model.parameters() if weight.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gradient_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """Give what the gradients of all weights that move now take; of tables it is a few rows, and counts as nothing."""
    weights = (weight for weight in model.parameters() if weight.requires_grad)
    return sum(weight.nbytes for weight in weights if weight not in optimizer.tables)


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Give what an optimizer remembers by now."""
    memories = (memory for part in optimizer.parts for memory in part.state.values())
    return sum(value.nbytes for memory in memories for value in tree_leaves(memory) if isinstance(value, Tensor))
