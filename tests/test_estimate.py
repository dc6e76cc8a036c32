"""What stages cost against full fine-tuning."""

from pathlib import Path

import pytest
import torch

import tiny
from alloytune import build
from alloytune.data.prepare import prepare
from alloytune.estimate import Estimate, estimate
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.read import recipe_from

STAGES = {
    "full": {"train": "all"},
    "elements": {"train": "random(10%, by=element, of=all)"},
    "top": {"train": "layers[-1:] | head"},
    "head": {"train": "head"},
    "cycle": {
        "train": {"always": "head", "rotate": {"choose": "cycle(by=layer)", "every": "3 updates"}},
        "until": {"updates": 12},
    },
    "unfreeze": {"train": "layers | head", "unfreeze": {"every": "3 updates"}, "until": {"updates": 4}},
    "freeze": {"train": "layers | head", "freeze_when": {"change": "below 1"}},
    "lora": {"attach": {"lora": {"rank": 2}}, "train": "adapter | head"},
}


@pytest.fixture(scope="module")
def cost(bert: Path) -> Estimate:
    stages = [{"name": name, "rate": 1e-3, **stage} for name, stage in STAGES.items()]
    recipe = recipe_from({"model": str(bert), "batch": 8, "stages": stages})
    dataset = prepare(build.build_data_settings(recipe), tiny.make_table(100))
    session = build.build_session(recipe, dataset)
    before = copy_weights(session.state.model, named_weights(session.state.model))
    found = estimate(session)
    after = named_weights(session.state.model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    return found


def test_operations_against_full(cost: Estimate) -> None:
    share = {stage.name: stage.flops_share for stage in cost.stages}
    assert share["full"] == share["elements"] == 1.0
    assert 1 / 3 < share["head"] < 0.36  # forward alone, of three passes' worth
    assert 0.55 < share["top"] < 2 / 3  # forward, half of the backward pass, and no gradient for that half's input
    assert 0.6 < share["lora"] < 0.9
    assert share["cycle"] == share["unfreeze"] == share["top"]  # the turn in the middle
    assert share["freeze"] > 0.9
    assert all(stage.memory_share > 0 for stage in cost.stages)


def test_what_moves(cost: Estimate) -> None:
    shares = {stage.name: stage.num_trained / stage.num_parameters for stage in cost.stages}
    assert shares["full"] == 1.0
    assert shares["elements"] == pytest.approx(0.1, abs=1e-4)
    assert shares["cycle"] == shares["unfreeze"] == shares["top"] < 0.55 < shares["freeze"]
    assert [stage.attached for stage in cost.stages] == [*[""] * 7, "lora"]
