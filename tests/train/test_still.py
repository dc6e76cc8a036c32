"""Of a weight that moves in part, the rest keeps its bits, and the optimizer never hears of it."""

import pytest
import torch
from torch import nn

from alloytune.recipe.types.optimizer import read_optimizer
from alloytune.train.moving import Group, Moving, Still, make_optimizer
from alloytune.train.optimizers import Optimizer, OptimizerSettings


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("adamw", {}),
        ("sgd", {"momentum": 0.9, "nesterov": False}),
        ("lion", {"beta1": 0.9, "beta2": 0.99, "bits": 32}),
    ],
)
def test_unselected_elements_keep_their_bits(kind: str, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    weights = {"part": nn.Parameter(torch.randn(4, 5)), "whole": nn.Parameter(torch.randn(3))}
    mask = torch.rand(4, 5) < 0.4
    moving = Moving((Group(("part", "whole"), 0.1, 0.5),), OptimizerSettings(kind, options), {"part": mask})
    assert moving.num_moving({name: tuple(w.shape) for name, w in weights.items()}) == int(mask.sum()) + 3
    assert moving.slower(0.1).masks == moving.masks
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = make_optimizer(moving, weights)
    train(Still(moving.masks, weights), optimizer, weights)
    assert torch.equal(weights["part"][~mask], before["part"][~mask])
    assert (weights["part"] != before["part"])[mask].all()
    assert (weights["whole"] != before["whole"]).all()
    (part,) = optimizer.parts
    memory = [value for value in part.state[weights["part"]].values() if torch.is_tensor(value) and value.dim()]
    assert len(memory) > 0
    assert all(value[mask].all() and not value[~mask].any() for value in memory)

    rested = [value.clone() for value in memory]  # now the others move, and the memory of the first rests
    train(Still({"part": ~mask}, weights), optimizer, weights)
    assert all(torch.equal(value[mask], old[mask]) for value, old in zip(memory, rested, strict=True))
    assert (weights["part"] != before["part"]).all()


def train(still: Still, optimizer: Optimizer, weights: dict[str, nn.Parameter]) -> None:
    for _ in range(3):
        sum(weight.square().sum() for weight in weights.values()).backward()
        still.clear_gradients()
        with still.during_update(optimizer):
            optimizer.step()
        optimizer.zero_grad()


def test_what_stays_does_not_count_for_clipping() -> None:
    weight = nn.Parameter(torch.ones(4))
    mask = torch.tensor([True, False, False, False])
    still = Still({"w": mask}, {"w": weight})
    (weight * torch.tensor([3.0, 40.0, 50.0, float("inf")])).sum().backward()
    still.clear_gradients()
    assert float(nn.utils.clip_grad_norm_([weight], 100.0)) == 3.0


def test_what_stays_stands_still_when_schedule_free_weights_switch() -> None:
    torch.manual_seed(0)
    weights = {"part": nn.Parameter(torch.randn(4, 5))}
    mask = torch.rand(4, 5) < 0.4
    settings = OptimizerSettings(*read_optimizer("schedule_free"))
    optimizer = make_optimizer(Moving((Group(("part",), 0.1, 0.5),), settings, {"part": mask}), weights)
    before = weights["part"].detach().clone()
    for _ in range(2):
        optimizer.train()
        train(Still({"part": mask}, weights), optimizer, weights)
        assert torch.equal(weights["part"] != before, mask)
        optimizer.eval()
        assert torch.equal(weights["part"] != before, mask)
