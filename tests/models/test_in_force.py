"""A context that is in force while a model is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from alloytune.models.in_force import in_calls


class Noting(TorchFunctionMode):
    def __init__(self, name: str, seen: list[str]) -> None:
        super().__init__()
        self.name, self.seen = name, seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.relu:
            self.seen.append(self.name)
        return func(*args, **(kwargs or {}))


class Relu(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dim() == 0:
            raise ValueError("no dimensions")
        return torch.relu(inputs)


@contextmanager
def two_in_force(model: nn.Module) -> Iterator[list[str]]:
    seen: list[str] = []
    with in_calls(model, Noting("first", seen)), in_calls(model, Noting("second", seen)):
        yield seen


def test_it_is_in_force_in_calls_alone() -> None:
    model, ones = Relu(), torch.ones(2)
    with two_in_force(model) as seen:
        torch.relu(ones)
        assert seen == []
        model(ones)
        assert seen == ["second", "first"], "the one entered last is asked first"
        model(ones)
        assert len(seen) == 4
    model(ones)
    assert len(seen) == 4


def test_a_call_that_fails_leaves_it() -> None:
    model, ones = Relu(), torch.ones(2)
    with two_in_force(model) as seen:
        with pytest.raises(ValueError, match="no dimensions"):
            model(torch.tensor(1.0))
        torch.relu(ones)
        assert seen == []
        model(ones)
        assert seen == ["second", "first"]
