"""What stages cost against full fine-tuning."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import tiny
from alloytune.build.data import build_data_settings
from alloytune.build.session import Session, build_session
from alloytune.data.prepare import prepare
from alloytune.estimate import MANY_WRITTEN, Estimate, _scoring, estimate
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.read import recipe_from
from alloytune.tasks import answering, writing
from alloytune.train.tensor_memory import CountMemory

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
    dataset = prepare(build_data_settings(recipe), tiny.make_table(100))
    session = build_session(recipe, dataset)
    before = copy_weights(session.state.model, named_weights(session.state.model))
    found = estimate(session)
    after = named_weights(session.state.model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    return found


def test_operations_against_full(cost: Estimate) -> None:
    share = {stage.name: (stage.update.flops + stage.update.kept_flops) / stage.full.flops for stage in cost.stages}
    assert share["full"] == share["elements"] == 1.0
    assert 1 / 3 < share["head"] < 0.36  # forward alone, of three passes' worth
    assert 0.55 < share["top"] < 2 / 3  # forward, half of the backward pass, and no gradient for that half's input
    assert 0.6 < share["lora"] < 0.9
    assert share["cycle"] == share["unfreeze"] == share["top"]  # the turn in the middle
    assert share["freeze"] > 0.9


def test_frozen_layers_that_are_kept_count_once(cost: Estimate) -> None:
    stages = {stage.name: stage for stage in cost.stages}
    head, full = stages["head"], stages["full"]
    assert full.update.kept_flops == full.keeping_flops == 0
    assert head.flops_share < 0.05  # the layers below are read back
    num_updates = head.num_updates or 0
    assert head.flops == num_updates * head.update.flops + head.keeping_flops
    assert head.keeping_flops == pytest.approx(num_updates / 3 * head.update.kept_flops)  # of three epochs


def test_what_moves(cost: Estimate) -> None:
    shares = {stage.name: stage.num_trained / stage.num_parameters for stage in cost.stages}
    assert shares["full"] == 1.0
    assert shares["elements"] == pytest.approx(0.1, abs=1e-4)
    assert shares["cycle"] == shares["unfreeze"] == shares["top"] < 0.55 < shares["freeze"]
    assert [stage.attached for stage in cost.stages] == [*[""] * 7, "lora"]


def _session(folder: Path, name: str) -> Session:
    """Give a session of one stage of 64 rows an update."""
    recipe = recipe_from({"model": str(folder), "batch": 64, "stages": [{"name": name, "rate": 1e-3, **STAGES[name]}]})
    return build_session(recipe, prepare(build_data_settings(recipe), tiny.make_table(400)))


def _beyond_held(session: Session, most_tokens: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Give the memory of an update beside what is held anyway, with so many tokens tried at a time."""
    monkeypatch.setattr("alloytune.estimate.MOST_TOKENS", most_tokens)
    monkeypatch.setattr(type(session.machine), "held_bytes", lambda machine: 0)
    (stage,) = estimate(session).stages
    return stage.update.peak_memory_bytes


def test_memory_against_full(cost: Estimate, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = {stage.name: stage.memory_share for stage in cost.stages}
    assert share["full"] == pytest.approx(1.0, abs=1e-3)
    assert share["elements"] == pytest.approx(1.0, abs=1e-3)
    memory = {name: _beyond_held(_session(bert, name), 512, monkeypatch) for name in ("head", "top", "lora", "full")}
    assert memory["head"] < 0.7 * memory["full"]
    assert memory["top"] < 0.8 * memory["full"]
    assert memory["lora"] < memory["full"]


def test_memory_freed_before_is_not_counted(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _beyond_held(_session(bert, "head"), 512, monkeypatch)
    torch.ones(2**26)  # 256 MiB, freed at once
    assert _beyond_held(_session(bert, "head"), 512, monkeypatch) == alone < 2**23


def test_few_rows_stand_for_many(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _beyond_held(_session(bert, "full"), 10**6, monkeypatch)
    few = _beyond_held(_session(bert, "full"), 128, monkeypatch)
    assert few == pytest.approx(whole, rel=0.25)


def test_of_long_answers_the_first_tokens_are_counted(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held grows with every token, so a few tell it for all, in as little time as they take."""
    written: list[int] = []
    plain = writing.write_answers

    def write_answers(model: Any, prompts: Any, tokenizer: Any, max_new_tokens: int) -> list[str]:
        written.append(max_new_tokens)
        return plain(model, prompts, tokenizer, max_new_tokens)

    monkeypatch.setattr(writing, "write_answers", write_answers)
    monkeypatch.setattr(answering, "end_tokens", lambda model, tokenizer: [])  # so that all are written
    stage = {"name": "full", "train": "all", "rate": 1e-3}
    recipe = recipe_from({"model": str(llama), "task": {"generation": {"max_new_tokens": 40}}, "stages": [stage]})
    texts = tiny.make_table(60)["text"]
    table = pl.DataFrame({"instruction": texts, "output": texts})
    session = build_session(recipe, prepare(build_data_settings(recipe), table))
    few = _scoring(session, session.examples["validation"])
    assert max(written) == MANY_WRITTEN
    monkeypatch.setattr("alloytune.estimate.MANY_WRITTEN", 40)
    assert few == pytest.approx(_scoring(session, session.examples["validation"]), rel=0.1)
    assert max(written) == 40


def test_a_counter_counts_what_is_held_at_a_time() -> None:
    inputs = torch.ones(1000, requires_grad=True)
    with CountMemory() as counter:
        for _ in range(3):
            inputs.detach().exp().view(-1)
    assert counter.peak <= 2 * 4000
    with CountMemory() as counter:
        inputs.exp().exp().exp().sum().backward()
    assert 3 * 4000 <= counter.peak <= 5 * 4000
