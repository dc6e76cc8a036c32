"""From recipe to what moves."""

from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MT5Config,
    PreTrainedConfig,
    T5Config,
)

import tiny
from alloytune.build.attaching import build_attachments
from alloytune.build.data import with_optional_columns
from alloytune.build.moving import build_moving, family_of
from alloytune.build.pace import in_training_form, make_stage_loss, make_stage_optimizer
from alloytune.build.plan import build_plan
from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.learning import Learning
from alloytune.machine import find_machine
from alloytune.models.adapters import Attachment
from alloytune.models.heads import MAIN
from alloytune.models.load import load_tokenizer
from alloytune.models.methods import LoraSettings
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.rates import Family
from alloytune.recipe.read import recipe_from
from alloytune.selection import REHEARSAL, resolve
from alloytune.stages.measures import Measures
from alloytune.tasks.task import Example
from alloytune.train.batches import Updates
from tiny import TASK
from train.test_clip import groups

TRAINING = {"name": "last", "train": "all"}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "memory"])
def test_optional_columns_are_read_where_the_table_has_them(tmp_path: Path, suffix: str) -> None:
    rows = pl.DataFrame({"instruction": ["a", "b"], "input": [None, "c"], "output": ["d", "e"], "more": ["f", "g"]})
    file = tmp_path / f"table.{suffix}"
    {"csv": rows.write_csv, "jsonl": rows.write_ndjson, "parquet": rows.write_parquet}.get(suffix, lambda path: None)(
        file
    )
    table = rows if suffix == "memory" else None
    given = {"task": "generation", "data": {} if table is not None else {"train": str(file)}, "stages": [TRAINING]}
    assert with_optional_columns(recipe_from(given), table).columns == {
        k: k for k in ("instruction", "input", "output")
    }
    given["data"] = {**given["data"], "output": "input"}  # which is taken
    assert with_optional_columns(recipe_from(given), table).columns == {"instruction": "instruction", "output": "input"}
    named = {**given, "task": "classification", "data": {**given["data"], "output": None}}
    assert with_optional_columns(recipe_from(named), table).columns == {"text": "text", "label": "label"}


def test_a_stage_reads_its_own_optional_columns(tmp_path: Path) -> None:
    pl.DataFrame({"query": ["a"], "document": ["b"], "negative": ["c"]}).write_csv(tmp_path / "pairs.csv")
    own = {"name": "pairs", "train": "all", "task": "embedding", "data": {"train": str(tmp_path / "pairs.csv")}}
    recipe = with_optional_columns(recipe_from({"data": {"train": "none.csv"}, "stages": [own, TRAINING]}))
    assert recipe.view(0).columns == {"query": "query", "document": "document", "negative": "negative"}
    assert recipe.columns == {"text": "text", "label": "label"}


def session(state: ModelState, bert: Path, *, attached: bool = False, **stage: object) -> Session:
    """Give a session whose one stage is to be built; its adapter, if any, is attached already."""
    if attached:
        names = resolve("attention", state.roles(), "on")
        state.attach(Attachment("lora", LoraSettings(2), names, 0), "attach")
        stage["attach"] = {"lora": {"on": "attention"}}
    recipe = recipe_from({"stages": [{"name": "only", **stage}]})
    tokenizer = load_tokenizer(str(bert))
    return Session(recipe, str(bert), tokenizer, state, find_machine("float32"), None, {MAIN: Learning(TASK, {}, {})})


def series(bert: Path, rows: int = 100) -> Updates:
    """Give updates on one row each, of eight tokens."""
    examples = [Example(str(n), {"input_ids": [1] * 8}, 0) for n in range(rows)]
    return Updates(examples, 1, 1, 0, partial(TASK.collate, tokenizer=load_tokenizer(str(bert))))


def rates(session: Session) -> dict[str, float]:
    return {name: group.rate for group in build_moving(session, 0).groups for name in group.names}


@pytest.mark.parametrize(
    ("config", "family"),
    [
        (BertConfig, "encoder"),
        (BartConfig, "encoder"),
        (GPT2Config, "decoder"),
        (LlamaConfig, "decoder"),
        (partial(BertConfig, is_decoder=True), "decoder"),
        (T5Config, "t5"),
        (MT5Config, "t5"),
    ],
)
def test_families_of_models(config: Callable[[], PreTrainedConfig], family: Family) -> None:
    assert family_of(config()) == family


def test_rates_by_selection_come_first(state: ModelState, bert: Path) -> None:
    found = rates(session(state, bert, train="all", rate=1e-4, rates={"head": 1e-2, "norm | head": 1e-3}))
    assert found["classifier.weight"] == 1e-2
    assert found["bert.embeddings.LayerNorm.weight"] == 1e-3
    assert found["bert.embeddings.word_embeddings.weight"] == 1e-4


@pytest.mark.parametrize(
    ("train", "attached", "body", "adapter", "head"),
    [
        ("all", False, 3e-4, None, 1e-2),
        ("layers[-1:] | head", False, 3e-4, None, 1e-2),  # half of the layers of this model
        ("attention.query | head", False, 1e-3, None, 1e-3),
        ("bias | head", False, 6e-3, None, 6e-3),
        ("attention.query | adapter | head", True, 1e-3, 3e-3, 1e-2),
        ("head", False, None, None, 6e-2),
        ("adapter | head", True, None, 3e-3, 1e-2),
        ("all | adapter", True, 3e-4, 3e-3, 1e-2),
    ],
)
def test_auto_rates(
    state: ModelState, bert: Path, train: str, attached: bool, body: float, adapter: float, head: float
) -> None:
    found = rates(session(state, bert, attached=attached, train=train))
    of_adapter = {rate for name, rate in found.items() if "lora" in name}
    assert of_adapter == ({adapter} if adapter else set())
    assert found["classifier.weight"] == head
    assert {rate for name, rate in found.items() if "encoder" in name and "lora" not in name} == (
        {body} if body else set()
    )


def test_the_second_factor_of_lora_plus_goes_faster(state: ModelState, bert: Path) -> None:
    it = session(state, bert, train="adapter | head", rate=1e-3, attach={"lora": {"on": "attention", "plus": 16}})
    (attachment,) = build_attachments(it, 0)
    state.attach(attachment, "attach")
    found = rates(it)
    assert {rate for name, rate in found.items() if "lora_B" in name} == {1.6e-2}
    assert {rate for name, rate in found.items() if "lora_B" not in name} == {1e-3}


@pytest.mark.parametrize(("train", "rate"), [("all", 3e-4), ("adapter | head", 3e-3)])
def test_a_head_that_came_with_the_model_goes_with_what_moves_beside_it(bert: Path, train: str, rate: float) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    known = ModelState(model, frozenset())
    assert rates(session(known, bert, attached="adapter" in train, train=train))["classifier.weight"] == rate


@pytest.mark.parametrize(
    ("earlier", "body", "head"), [({}, 9e-5, 9e-5), ({"task": "language_modelling"}, 3e-4, 1e-2)], ids=["same", "other"]
)
def test_weights_that_have_moved_for_the_same_task_get_less(
    state: ModelState, bert: Path, earlier: dict[str, Any], body: float, head: float
) -> None:
    state.touched |= resolve("layers", state.roles(), "train")
    it = session(state, bert, train="all")
    stages = [{"name": "earlier", "train": "all", **earlier}, {"name": "only", "train": "all"}]
    it.recipe = recipe_from({"stages": stages})
    found = {name: group.rate for group in build_moving(it, 1).groups for name in group.names}
    assert found["bert.encoder.layer.0.attention.self.query.weight"] == pytest.approx(body)
    assert found["classifier.weight"] == pytest.approx(head)


@pytest.mark.parametrize("decay_to", ["zero", "pretrained"])
def test_biases_and_norms_do_not_decay_nor_embeddings_to_zero(state: ModelState, bert: Path, decay_to: str) -> None:
    moving = build_moving(session(state, bert, train="all", weight_decay=0.1, decay_to=decay_to), 0)
    undecayed = {name for group in moving.groups if group.weight_decay == 0 for name in group.names}
    left = resolve("bias | norm | embeddings" if decay_to == "zero" else "bias | norm", state.roles(), "train")
    assert undecayed == left & moving.names


def test_a_rate_for_what_does_not_move_is_refused(state: ModelState, bert: Path) -> None:
    with pytest.raises(InputError, match=r"stages\[0\].rates: nothing of 'embeddings' moves"):
        build_moving(session(state, bert, train="head", rates={"embeddings": 1e-3}), 0)


@pytest.mark.parametrize(("epochs", "updates"), [(0.07, 7), (0.071, 8), (1, 100), (2.3, 230)])
def test_shares_of_an_epoch_are_whole_updates(state: ModelState, bert: Path, epochs: float, updates: int) -> None:
    it = session(state, bert, train="all", rate=1e-3, until={"epochs": epochs})
    assert build_plan(it, 0, 0, series(bert)).max_updates == updates


@pytest.mark.parametrize(
    ("words", "planned"),
    [
        ({"until": {"updates": 7, "epochs": 1}}, {"max_updates": 7, "max_seconds": None, "max_tokens": None}),
        ({"until": {"minutes": 1.5}}, {"max_updates": None, "max_seconds": 90.0}),
        ({"until": {"epochs": 1, "patience": 3}}, {"max_updates": 100, "patience": 3, "patience_metric": None}),
        (
            {"until": {"epochs": 1, "patience": {"metric": "loss", "evaluations": 4}}},
            {"patience": 4, "patience_metric": "loss"},
        ),
        ({"until": {"epochs": 1, "score": 0.75}}, {"enough": {"macro_f1": 0.75}, "patience": None}),
        ({"until": {"epochs": 1, "score": {"loss": 0.5, "accuracy": 1}}}, {"enough": {"loss": 0.5, "accuracy": 1}}),
        ({"evaluate": "30 updates", "keep": "last"}, {"evaluate_every": 30, "keep": "last", "enough": {}}),
        ({"evaluate": "0.5 epochs"}, {"evaluate_every": 50, "keep": "best", "average_share": None}),
        ({"checkpoint": "2 minutes"}, {"checkpoint_seconds": 120, "checkpoint_updates": None}),
        ({"checkpoint": "0.25 epochs"}, {"checkpoint_seconds": None, "checkpoint_updates": 25}),
    ],
    ids=str,
)
def test_when_a_stage_ends_and_is_looked_at(
    state: ModelState, bert: Path, words: dict[str, Any], planned: dict[str, Any]
) -> None:
    of_recipe = {key: words[key] for key in words if key == "checkpoint"}
    it = session(state, bert, train="all", **{key: words[key] for key in words if key != "checkpoint"})
    it.recipe = it.recipe.model_copy(update=of_recipe)
    plan = build_plan(it, 0, 0, series(bert))
    assert {key: getattr(plan, key) for key in planned} == planned


def test_operations_are_so_many_tokens(state: ModelState, bert: Path) -> None:
    """A token costs little more than six for every weight in the layers: two forward, four back."""
    plan = build_plan(session(state, bert, train="all", until={"flops": 1e9}), 0, 0, series(bert))
    shapes = state.roles().shapes
    weights = sum(prod(shapes[name]) for name in resolve("layers", state.roles(), "train"))
    assert plan.max_updates is None
    assert plan.max_tokens is not None
    assert 6 * weights < 1e9 / plan.max_tokens < 8 * weights


@pytest.mark.parametrize(
    ("clip", "left"),
    [
        (None, [3.0, 0.3, 4.0]),
        (5.0, [3.0, 0.3, 4.0]),
        ({"norm": 1.0}, [3 / 5.009, 0.3 / 5.009, 4 / 5.009]),
        ({"norm": 1.0, "per": "group"}, [0.6, 0.3, 0.8]),
    ],
    ids=str,
)
def test_gradients_are_clipped_as_the_stage_says(state: ModelState, bert: Path, clip: Any, left: list[float]) -> None:
    """Layers have a norm of 5, the head one of 0.3."""
    given: Any = groups()
    build_plan(session(state, bert, train="all", clip=clip), 0, 0, series(bert)).clip(given)
    assert [float(group["params"][0].grad) for group in given] == pytest.approx(left, rel=1e-2)


def test_what_a_choice_leaves_out_is_refused_by_nobody(state: ModelState, bert: Path) -> None:
    more = {"rates": {"head": 1e-3}, "layer_decay": 0.9, "optimizer": "muon"}
    given = session(state, bert, train="random(1, of=head | attention.query)", rate=1e-4, **more)
    build_moving(given, 0, REHEARSAL)
    for seed in range(12):  # a tensor of the head, a matrix or a bias of a layer
        (group,) = build_moving(given, 0, Measures(seed)).groups
        assert group.rate == (
            1e-3 if group.role == "head" else pytest.approx(1e-4 * 0.9 ** (2 - _layer(group.names[0])))
        )


def _layer(name: str) -> int:
    return int(name.split("layer.")[1][0])


def test_layer_decay_goes_down_from_the_top(state: ModelState, bert: Path) -> None:
    """Head at the full rate, two layers at 0.5 and 0.25 of it, embeddings at 0.125; own rates stay."""
    found = rates(session(state, bert, train="all", rate=1e-2, layer_decay=0.5, rates={"layers[1] & norm": 3e-4}))
    layer = "bert.encoder.layer.{}.output.{}.weight".format
    assert found["classifier.weight"] == 1e-2
    assert found[layer(1, "dense")] == pytest.approx(5e-3)
    assert found[layer(0, "dense")] == pytest.approx(2.5e-3)
    assert found["bert.embeddings.word_embeddings.weight"] == pytest.approx(1.25e-3)
    assert found[layer(1, "LayerNorm")] == 3e-4


def test_layer_decay_holds_for_the_adapters_in_a_layer(state: ModelState, bert: Path) -> None:
    found = rates(session(state, bert, attached=True, train="adapter | head", rate=1e-2, layer_decay=0.5))
    of_adapters = {_layer(name): rate for name, rate in found.items() if "lora" in name}
    assert of_adapters == {0: pytest.approx(2.5e-3), 1: pytest.approx(5e-3)}
    assert found["classifier.weight"] == 1e-2


@pytest.mark.parametrize("more", [{"label_smoothing": 0.2}, {"mixout": 0.5}, {"dropout": 0.5}, {"r_drop": 1}], ids=str)
def test_each_regulariser_changes_the_loss(state: ModelState, bert: Path, more: dict[str, float]) -> None:
    with torch.no_grad():
        for weight in named_weights(state.model).values():
            weight += 0.1  # mixout finds the old values in the files
    examples = TASK.encode(tiny.make_table(8), load_tokenizer(str(bert)), 32).examples
    losses = []
    for given in ({}, more):
        it = session(state, bert, train="all", **given)
        loss = make_stage_loss(it, 0, build_moving(it, 0))
        torch.manual_seed(0)
        with in_training_form(it, 0):
            losses.append(float(loss(state.model.train(), TASK.collate(examples, it.tokenizer)).detach()))
    assert losses[0] != losses[1]


def test_constant_weights_of_a_joint_objective_are_factors_of_the_rates(state: ModelState, bert: Path) -> None:
    """The rest of the base at `full`, what is partial at full + partial, the adapter at its own, the head whole."""
    joint = {"mode": "update", "full": 0.3, "partial": 0.7, "adapter": 0.1, "of": "layers[-1:]"}
    found = rates(session(state, bert, attached=True, train="all | adapter", rate=1e-2, joint=joint))
    adapter = {name for name in found if "lora" in name}
    partial = {name for name in found if ".layer.1." in name} - adapter
    rest = found.keys() - adapter - partial - state.head
    assert len(rest) > 10
    expected = {1e-2: partial | state.head, 3e-3: rest, 1e-3: adapter}
    assert found == pytest.approx({name: rate for rate, names in expected.items() for name in names})


def test_muon_gets_hidden_matrices_and_adamw_the_rest(state: ModelState, bert: Path) -> None:
    made = session(state, bert, train="all", optimizer="muon")
    optimizer = make_stage_optimizer(made, 0, build_moving(made, 0))
    by = {type(part).__name__: [w for g in part.param_groups for w in g["params"]] for part in optimizer.parts}
    name_of = {weight: name for name, weight in named_weights(state.model).items()}
    matrices = {
        name
        for name in resolve("layers | pooler", state.roles(), "matrices") - state.head
        if len(state.roles().shapes[name]) == 2
    }
    assert {name_of[weight] for weight in by["Muon"]} == matrices
    assert {name_of[weight] for weight in by["AdamW"]} == set(name_of.values()) - matrices


def test_adamw_is_one_fused_optimizer(state: ModelState, bert: Path) -> None:
    made = session(state, bert, train="all")
    (part,) = make_stage_optimizer(made, 0, build_moving(made, 0)).parts
    assert isinstance(part, torch.optim.AdamW)
    assert part.defaults["fused"]


@pytest.mark.parametrize(("to", "gap"), [("pretrained", 0.0), ("stage-start", 1.0)])
def test_anchors_are_found_again(state: ModelState, bert: Path, to: str, gap: float) -> None:
    """Head and adapter have a value at the stage's start, but no pretrained one."""
    made = session(state, bert, attached=True, train="all | adapter", decay_to=to)
    pretrained = copy_weights(state.model, named_weights(state.model))
    with torch.no_grad():
        for weight in named_weights(state.model).values():
            weight += 1.0
    optimizer = make_stage_optimizer(made, 0, build_moving(made, 0))
    name_of = {weight: name for name, weight in named_weights(state.model).items()}
    anchors = {name_of[w]: a for group in optimizer.param_groups for w, a in group.get("anchors", {}).items()}
    own = {name for name in anchors if name in state.head | state.adapter_names}
    assert bool(own) is (to == "stage-start")
    assert "bert.embeddings.word_embeddings.weight" in anchors
    assert not [name for name in anchors if name.endswith("bias") or "LayerNorm" in name]
    for name, anchor in anchors.items():
        assert torch.allclose(anchor, pretrained[name] + gap, atol=1e-6), name
