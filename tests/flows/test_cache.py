"""Stages that keep what their frozen layers give: as others to rounding, and the same bytes after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch

import alloytune
import tiny
from alloytune.errors import InputError
from properties.carried_out import Witness, assert_same, begin, carry_out

LORA = {"lora": {"rank": 2, "on": "layers[-1:] & (attention | mlp)"}}


def stage(**settings: Any) -> dict[str, Any]:
    return {"name": "one", "train": "layers[-1:] | head", "rate": 1e-2, "until": {"epochs": 3}, **settings}


def ran(model: Path, folder: Path, *stages: dict[str, Any], stop: int | None = None, **settings: Any) -> Witness:
    recipe = {"batch": 8, "checkpoint": "2 updates", **settings, "stages": list(stages)}
    return carry_out(begin(recipe, model), folder, stop)


def assert_close(one: Witness, other: Witness, allowed: float = 1e-4) -> None:
    before, after = one.weights(), other.weights()
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < allowed


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": "head"},
        {"attach": LORA, "train": "adapter | head"},
        {"r_drop": 1.0},
        {"mixout": 0.3},
        {"train": {"always": "head", "rotate": {"choose": "random(1, by=layer)", "every": "2 updates"}}},
        {"train": "head", "rate": "auto", "until": {"epochs": 30}, "evaluate": "10 epochs"},
        {"attach": LORA, "train": "layers[-1:] | adapter | head", "joint": {"mode": "views", "full": 1, "adapter": 1}},
        {"attach": LORA, "train": "layers[-1:] | adapter | head", "joint": {"mode": "sample", "full": 1, "adapter": 1}},
        {"keep": "last", "label_smoothing": 0.1},
    ],
    ids=lambda settings: " ".join(map(str, settings)) or "plain",
)
def test_what_is_kept_changes_rounding_alone(settings: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    ends = {
        cache: ran(
            bert,
            tmp_path / str(cache),
            stage(**{"optimizer": "sgd", **settings, "cache": cache}),  # AdamW takes whole steps of what is rounding
            precision="float32",
        )
        for cache in (True, False)
    }
    assert_close(ends[True], ends[False])
    facts = {cache: end.results["one"]["cache"] for cache, end in ends.items()}
    rotates = isinstance(settings.get("train"), dict)
    assert facts[True]["kept"] != rotates
    if not rotates:
        assert facts[True]["texts_read"] > 2 * facts[True]["texts_computed"]
    assert not facts[False]["kept"]


def test_a_resume_in_the_middle_ends_in_the_same_bytes(bert: Path, tmp_path: Path) -> None:
    stages = [stage(), stage(name="two", attach=LORA, train="adapter | head", cache=True, until={"epochs": 2})]
    alone = ran(bert, tmp_path / "alone", *stages)
    assert alone.results["one"]["cache"]["kept"]
    for stop in (3, 8, 14, 18):
        folder = tmp_path / str(stop)
        ran(bert, folder, *stages, stop=stop)
        assert_same(ran(bert, folder, *stages).weights(), alone.weights())


def test_later_stages_and_retries_read_what_was_kept(bert: Path, tmp_path: Path) -> None:
    retry = {"accept": {"gain": 0.99}, "otherwise": {"retry": {"times": 1}}}
    end = ran(bert, tmp_path / "run", stage(), stage(name="two", **retry), stage(name="three", train="head"))
    facts = [end.results[name]["cache"] for name in ("one", "two", "three")]
    assert [fact["layers"] for fact in facts] == [1, 1, 2]
    assert facts[0]["texts_computed"] > 0
    assert facts[1]["texts_computed"] == 0
    assert facts[2]["texts_computed"] > 0  # the layer above has moved


@pytest.mark.parametrize("is_kept", [True, False])
def test_layers_that_moved_between_two_stages_are_computed_anew(is_kept: bool, bert: Path, tmp_path: Path) -> None:
    between = {} if is_kept else {"accept": {"gain": 0.99}, "otherwise": "rollback"}
    stages = [
        stage(name="one", train="head"),
        stage(name="all", train="all", optimizer="sgd", **between),
        stage(name="two", train="head", optimizer="sgd"),
    ]
    end = ran(bert, tmp_path / "run", *stages, precision="float32")
    assert (end.results["two"]["cache"]["texts_computed"] > 0) == is_kept
    uncached = [{**each, "cache": False} for each in stages]
    assert_close(end, ran(bert, tmp_path / "uncached", *uncached, precision="float32"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"train": "all"}, "no layer"),
        ({"train": "embeddings | head"}, "no layer"),
        ({"until": {"epochs": 1}}, "less than twice"),
        ({"until": {"updates": 3}}, "less than twice"),
        ({"cache": False}, "cache: false"),
        ({"until": {"minutes": 0.001}}, "it passes over its rows less than twice, or ends by time alone"),
    ],
)
def test_the_record_says_why_nothing_is_kept(settings: dict[str, Any], reason: str, bert: Path, tmp_path: Path) -> None:
    facts = ran(bert, tmp_path / "run", stage(**settings)).results["one"]["cache"]
    assert not facts["kept"]
    assert reason in facts["reason"]


def test_a_wish_that_cannot_be_granted_is_refused(bert: Path) -> None:
    with pytest.raises(InputError, match="no layer stands below"):
        begin({"stages": [stage(train="all", cache=True)]}, bert)


def test_masked_rows_are_not_kept(bert: Path, tmp_path: Path) -> None:
    recipe = {"batch": 8, "task": "language_modelling", "stages": [stage(train="layers[-1:]")]}
    tuned = alloytune.tune(tiny.make_table(60).select("text"), str(bert), recipe, output=tmp_path / "run")
    facts = tuned.results["stages"][0]["cache"]
    assert (facts["kept"], facts["layers"]) == (False, 1)
    assert "every epoch" in facts["reason"]


def test_frozen_layers_draw_no_dropout_whether_they_are_kept_or_not(tmp_path: Path) -> None:
    """The layer below has all the dropout; what is learned above it does not hang on a random number."""
    model = tiny.save_bert(tmp_path / "bert", dropout=0.0)
    ends = []
    for seed, share in ((0, 0.0), (1, 0.9)):
        session = begin({"batch": 8, "seed": 0, "stages": [stage(cache=False)]}, model)
        layer = session.state.model.bert.encoder.layer[0]
        for module in layer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = share
        ends.append(carry_out(session, tmp_path / str(seed)).weights())
    assert_same(*ends)
