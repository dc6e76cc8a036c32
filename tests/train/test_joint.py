"""Every mode of a joint objective against a plain reference: the separate losses, one after another, in float64."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers.pytorch_utils import Conv1D

import tiny
from alloytune.errors import InputError
from alloytune.machine import Machine
from alloytune.models.adapters import Attachment, adapted_layers
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.methods import LoraSettings
from alloytune.models.replay import layers_before_adapters
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.recipe.types.optimizer import read_optimizer
from alloytune.selected import Selected
from alloytune.selection import resolve
from alloytune.tasks.classification import Classification
from alloytune.tasks.task import Batch
from alloytune.train.batches import Updates
from alloytune.train.clip import make_clip
from alloytune.train.joint import VIEWS_OF, Blend, Draws, Part, Piece, View, WeightCourse, weighted
from alloytune.train.loop import Loss, training_steps
from alloytune.train.moving import Group, Moving, make_optimizer
from alloytune.train.optimizers import OptimizerSettings
from alloytune.train.regularize import make_loss
from alloytune.train.route import COUNTS, Router, Site
from alloytune.train.turns import Turns
from alloytune.train.views import Views, with_adapters_that_move
from architectures import ARCHITECTURES

FLOAT64 = Machine(torch.device("cpu"), torch.float32)
NUM_UPDATES = 3
RATES = {"full": 2e-3, "partial": 2e-3, "adapter": 5e-3, "head": 1e-2}
KINDS = ("bert", "gpt2", "bart")  # an encoder, a decoder, an encoder-decoder; Llama and T5 take norms in float32

Grads = dict[str, Tensor]


class Exact(Classification):
    """Classification whose outputs keep the model's precision."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs).logits
        return logits


TASK = Exact(("bad", "good"))


@dataclass
class Subject:
    """A model of two layers (on each side) with LoRA on the last, in float64, without dropout."""

    state: ModelState
    bare: nn.Module  # the same without adapters
    updates: list[list[Batch]]
    parts: dict[str, Part]

    @property
    def model(self) -> nn.Module:
        return self.state.model

    def names(self, *parts: Part) -> frozenset[str]:
        return frozenset(name for name, part in self.parts.items() if part in parts)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Subject":
    return make_subject(ARCHITECTURES[request.param].save(tmp_path_factory.mktemp(request.param)))


def load(folder: Path, task: Classification = TASK) -> ModelState:
    tokenizer = load_tokenizer(str(folder))
    model, fresh = load_model(task.auto_class, str(folder), tokenizer, 0, **task.config)
    for module in model.modules():
        for key in [key for key in vars(module) if key.endswith("dropout") and isinstance(vars(module)[key], float)]:
            setattr(module, key, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return ModelState(model.double(), fresh)


def make_subject(folder: Path, on: str = "layers[-1:] & (attention | mlp)") -> Subject:
    state, bare = load(folder), load(folder)
    settings = LoraSettings(rank=2, alpha=4, dropout=0.0)
    state.attach(Attachment("lora", settings, resolve(on, state.roles(), "on"), 1), "attach")
    state.model.double()
    torch.manual_seed(4)
    weights = named_weights(state.model)
    with torch.no_grad():
        for name in sorted(state.adapter_names):
            weights[name].normal_(0, 0.1)
        for name in sorted(state.head):
            weights[name].normal_(0, 1)  # so that gradients stand well above Adam's epsilon
    roles = state.roles()
    last = resolve("layers[-1:]", roles, "of")
    parts: dict[str, Part] = {
        name: "adapter"
        if name in state.adapter_names
        else "head"
        if name in state.head
        else "partial"
        if name in last
        else "full"
        for name in roles.shapes
    }
    tokenizer = load_tokenizer(str(folder))
    examples = TASK.encode(tiny.make_table(24), tokenizer, 32).examples
    series = Updates(examples, 8, 3, 5, partial(TASK.collate, tokenizer=tokenizer)).after(0)
    return Subject(state, bare.model, [next(series) for _ in range(NUM_UPDATES)], parts)


@pytest.fixture
def subject(made: Subject) -> Subject:
    return own(made)


def own(it: Subject) -> Subject:
    return Subject(deepcopy(it.state), it.bare, it.updates, it.parts)


def constant(**weights: float) -> dict[View, WeightCourse]:
    return {view: WeightCourse.constant(weight) for view, weight in weights.items()}  # type: ignore[misc]


def settings_of(kind: str) -> OptimizerSettings:
    name, options = read_optimizer(kind)  # type: ignore[arg-type]
    return OptimizerSettings(name, options | ({"momentum": 0.9} if kind == "sgd" else {}))


def train(
    it: Subject,
    loss: Loss,
    blend: Blend,
    kind: str,
    around: Callable[[Any], AbstractContextManager[None]] | None = None,
    factors: Mapping[str, float] | None = None,
) -> Subject:
    """Carry out the updates by the one loop; `factors` are those that stand in the rates themselves."""
    groups = tuple(
        Group(tuple(sorted(it.names(part))), rate * (factors or {}).get(part, 1.0), 0.0, part=part)
        for part, rate in RATES.items()
        if it.names(part)  # type: ignore[arg-type]
    )
    optimizer = make_optimizer(Moving(groups, settings_of(kind)), named_weights(it.model))
    turns = Turns(blend, frozenset(it.parts), it.model, optimizer, around=around)
    steps = training_steps(
        it.model,
        optimizer,
        it.updates,
        loss,
        FLOAT64,
        still=lambda update: turns.at(update, (update - 1) / len(it.updates)),
        multiplier=lambda update: 1.0,
        clip=make_clip(None),
        seed=0,
    )
    assert len(list(steps)) == len(it.updates)
    return it


# The reference: every loss by itself, on all rows of an update at once, gradients by name.


class Reference:
    """Holds the weights, and takes plain gradients of single losses and plain steps."""

    def __init__(self, it: Subject, kind: str, factors: Mapping[str, float] | None = None) -> None:
        self.it = it
        self.weights = {name: w.detach().clone() for name, w in named_weights(it.model).items()}
        self.start = {name: w.clone() for name, w in self.weights.items()}
        self.leaves = {name: nn.Parameter(w) for name, w in self.weights.items()}
        groups = [
            {"params": [self.leaves[n] for n in sorted(it.names(part))], "lr": rate * (factors or {}).get(part, 1.0)}
            for part, rate in RATES.items()  # type: ignore[assignment]
        ]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, momentum=0.9) if kind == "sgd" else torch.optim.AdamW(groups, weight_decay=0.0)
        )

    def logits(self, view: str, rows: Batch) -> tuple[Tensor, dict[str, nn.Parameter]]:
        """Run a view on its own copy of the weights; also give what moves in it."""
        whole = view in ("adapter", "whole")
        model = self.it.model if whole else self.it.bare
        values = dict(self.leaves)
        if view == "partial":
            values |= {name: nn.Parameter(self.start[name]) for name in self.it.names("full")}
        weights = named_weights(model)
        moving: set[Part] = {part for part, views in VIEWS_OF.items() if view == "whole" or view in views}
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(values[name])
                weight.requires_grad_(view == "whole" or self.it.parts[name] in moving)
                weight.grad = None
        return TASK.outputs(model, rows), {name: weight for name, weight in weights.items() if weight.requires_grad}

    def gradients(self, view: str, rows: Batch) -> Grads:
        logits, moving = self.logits(view, rows)
        cross_entropy(logits, rows.targets).backward()
        return {name: weight.grad for name, weight in moving.items() if weight.grad is not None}

    def step(self, gradients: Grads) -> None:
        for name, leaf in self.leaves.items():
            leaf.grad = gradients.get(name)
        self.optimizer.step()

    def rows(self) -> list[Batch]:
        """Give each update's rows as one batch."""
        return [whole(batches, int(self.it.model.config.pad_token_id)) for batches in self.it.updates]


def whole(batches: list[Batch], padding: int) -> Batch:
    """Give the rows of micro-batches as one batch."""
    width = max(batch.inputs["input_ids"].shape[1] for batch in batches)
    inputs = {
        key: torch.cat(
            [
                nn.functional.pad(
                    batch.inputs[key],
                    (0, width - batch.inputs[key].shape[1]),
                    value=padding if key == "input_ids" else 0,
                )
                for batch in batches
            ]
        )
        for key in batches[0].inputs
    }
    targets = torch.cat([batch.targets for batch in batches])
    rows = tuple(row for batch in batches for row in batch.rows)
    return replace(batches[0], inputs=inputs, targets=targets, rows=rows)


def add(*weighted_gradients: tuple[float, Grads]) -> Grads:
    total: Grads = {}
    for weight, gradients in weighted_gradients:
        for name, gradient in gradients.items():
            total[name] = total.get(name, torch.zeros_like(gradient)) + weight * gradient
    return total


def assert_equal(it: Subject, reference: Reference) -> None:
    found = named_weights(it.model)
    worst = {
        name: float((found[name] - leaf).detach().abs().max())
        for name, leaf in reference.leaves.items()
        if name in it.parts
    }
    assert max(worst.values()) < 1e-10, max(worst, key=worst.__getitem__)
    moved = {name for name, leaf in reference.leaves.items() if not torch.equal(leaf, reference.start[name])}
    assert {it.parts[name] for name in moved} == set(it.parts.values())


def references(it: Subject, kind: str, factors: Mapping[str, float] | None = None) -> Reference:
    """Make the reference on a model of its own."""
    return Reference(own(it), kind, factors)


def test_update_under_sgd_is_the_naive_masked_loss(subject: Subject) -> None:
    """alpha L_full + beta L_partial + gamma L_adapter over one forward value, three masks, and the head's own."""
    weights = {"full": 0.3, "partial": 0.5, "adapter": 2.0}
    reference = references(subject, "sgd")
    for rows in reference.rows():
        whole = reference.gradients("whole", rows)

        def masked(*parts: Part) -> Grads:
            return {name: gradient for name, gradient in whole.items() if subject.parts[name] in parts}  # noqa: B023

        reference.step(
            add(
                (0.3, masked("full", "partial")),
                (0.5, masked("partial")),
                (2.0, masked("adapter")),
                (1, masked("head")),
            )
        )
    blend = Blend(Selected(frozenset(subject.parts)), subject.parts, constant(**weights))
    factors = {"full": 0.3, "partial": 0.8, "adapter": 2.0}
    assert_equal(train(subject, make_loss(TASK), blend, "sgd", factors=factors), reference)


def test_update_scales_the_steps_themselves(subject: Subject) -> None:
    factors = {"full": 0.3, "partial": 0.8, "adapter": 2.0}
    reference = references(subject, "adamw", factors)
    for rows in reference.rows():
        reference.step(reference.gradients("whole", rows))
    blend = Blend(Selected(frozenset(subject.parts)), subject.parts, constant(full=0.3, partial=0.5, adapter=2.0))
    assert_equal(train(subject, make_loss(TASK), blend, "adamw", factors=factors), reference)


def test_update_on_a_schedule(subject: Subject) -> None:
    slope = WeightCourse((Piece(0.0, 2.0, "cosine", math.inf),))
    until = WeightCourse(
        (Piece(0.5, 0.5, "linear", 1), Piece(2.0, 1.0, "linear", 3), Piece(0, 0, "linear", math.inf)), "update"
    )
    it = subject
    reference = references(it, "adamw")
    for update, rows in enumerate(reference.rows()):
        share = update / NUM_UPDATES
        adapter = 1 - math.cos(math.pi * share)
        full = (0.5, 1.75, 1.25)[update]
        for group, factor in zip(reference.optimizer.param_groups, (full, full + 1, adapter, 1), strict=True):
            group["lr"] = list(RATES.values())[reference.optimizer.param_groups.index(group)] * factor
        reference.step(reference.gradients("whole", rows))
    weights: dict[View, WeightCourse] = {"full": until, "partial": WeightCourse.constant(1), "adapter": slope}
    blend = Blend(Selected(frozenset(it.parts)), it.parts, weights)
    assert_equal(train(it, make_loss(TASK), blend, "adamw", partial(weighted, blend)), reference)


@pytest.mark.parametrize(("kind", "kl"), [("sgd", 0.0), ("adamw", 0.0), ("adamw", 0.7)])
def test_views(subject: Subject, kind: str, kl: float) -> None:
    weights = {"full": 0.3, "partial": 0.5, "adapter": 2.0}
    reference = references(subject, kind)
    views = list(weights)
    for rows in reference.rows():
        terms = [(weight, reference.gradients(view, rows)) for view, weight in weights.items()]
        if kl:
            terms += [(1.0, _of_divergence(reference, view, views, kl, rows)) for view in views]
        reference.step(add(*terms))
    blend = Blend(Selected(frozenset(subject.parts)), subject.parts, constant(**weights))
    frozen = copy_weights(subject.model, subject.names("full"))
    shared = layers_before_adapters(subject.model, subject.state.roles())
    assert len(shared) == len(subject.state.roles().stacks["layers"]) - 1
    loss = Views(TASK, blend, kl=kl, frozen=frozen, shared=tuple(shared))
    assert_equal(train(subject, loss, blend, kind), reference)


def _of_divergence(reference: Reference, view: str, views: list[str], kl: float, rows: Batch) -> Grads:
    """Give the gradient, by way of one view, of the mean over both ways of all pairs' divergences."""
    others = {other: log_softmax(reference.logits(other, rows)[0].detach(), -1) for other in views if other != view}
    logits, moving = reference.logits(view, rows)
    own = log_softmax(logits, -1)
    total = sum(
        kl * 0.5 * kl_div(one, two, log_target=True, reduction="batchmean")
        for other in others.values()
        for one, two in ((own, other), (other, own))
    )
    assert isinstance(total, Tensor)
    total.backward()
    return {name: weight.grad for name, weight in moving.items() if weight.grad is not None}


def test_lower_layers_run_once(subject: Subject) -> None:
    """The adapter view takes the lower layers' outputs from the base view; the partial view has a base of its own."""
    layers = layers_before_adapters(subject.model, subject.state.roles())
    blend = Blend(Selected(frozenset(subject.parts)), subject.parts, constant(full=1, adapter=1))
    blend.number(1, 0.0)
    ran: list[nn.Module] = []
    for module in subject.model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    loss = Views(TASK, blend, shared=tuple(layers))
    loss(subject.model, subject.updates[0][0])
    lower = {module for layer in layers for module in layer.modules()}
    counts = {count: {module for module in ran if ran.count(module) == count} for count in (1, 2)}
    lora = {module for name, module in subject.model.named_modules() if ".lora_" in name}
    assert counts[1] - lora == lower & set(ran)
    assert counts[2] == set(ran) - lower - lora


def test_sample(subject: Subject) -> None:
    """Only the drawn view's weights step, and only its updates count for them."""
    it = subject
    it.updates = it.updates * 3
    weights = constant(full=1, partial=2, adapter=2)
    draws = Draws(Selected(frozenset(it.parts)), it.parts, weights, every=2, seed=3)
    reference = references(it, "adamw")
    drawn = []
    for update, rows in enumerate(reference.rows(), 1):
        number = draws.number(update, 0.0)
        drawn.append(draws.turn(number).notes["view"])
        view = drawn[-1]
        if view == "partial":  # of the base as it is
            whole = {n: g for n, g in reference.gradients("full", rows).items() if it.parts[n] in ("partial", "head")}
        else:
            whole = reference.gradients(view, rows)
        reference.step(whole)
    assert set(drawn) == {"full", "partial", "adapter"}
    assert drawn[::2][:4] == drawn[1::2][:4]
    loss = with_adapters_that_move(make_loss(TASK), it.state.adapter_names)
    assert_equal(train(it, loss, draws, "adamw"), reference)


@pytest.mark.parametrize("kind", [Blend, partial(Draws, every=1, seed=0)])
def test_weights_that_all_rest_are_refused_when_it_comes_to_that(kind: Any) -> None:
    """Ends in updates and in shares of a stage that minutes end; how they lie to each other training alone shows."""
    courses = {
        "full": WeightCourse((Piece(1, 1, "linear", 2), Piece(0, 0, "linear", math.inf)), "update"),
        "adapter": WeightCourse((Piece(0, 0, "linear", 0.5), Piece(0, 1, "linear", math.inf))),
    }
    course = kind(Selected(frozenset()), {}, courses)
    course.turn(course.number(2, 0.4))
    course.turn(course.number(3, 0.5))  # at the foot of a slope
    assert course.now == {"full": 0, "adapter": 0}
    with pytest.raises(InputError, match="from update 3 on, all weights are 0"):
        course.number(3, 0.4)


def test_a_resume_knows_the_last_weights_before_any_update(subject: Subject) -> None:
    it, names = subject, frozenset(subject.parts)
    slope = WeightCourse((Piece(0, 1, "linear", 4), Piece(1, 1, "linear", math.inf)), "update")
    weights = constant(full=1) | {"adapter": slope}
    moving = Moving((Group(tuple(sorted(names)), 1e-3, 0.0),), settings_of("adamw"))
    optimizer = make_optimizer(moving, named_weights(it.model))
    alone, resumed = (Blend(Selected(names), it.parts, weights) for _ in range(2))
    before, after = (Turns(blend, names, it.model, optimizer) for blend in (alone, resumed))
    before.at(3, 0.5)
    alone.give({"full": 0.5})  # for the next update
    after.put(*before.state())
    assert resumed.now == alone.now == {"full": 1.0, "adapter": pytest.approx(0.625)}


def test_draws_follow_the_weights() -> None:
    draws = Draws(Selected(frozenset()), {}, constant(full=1, partial=3, adapter=6), every=1, seed=0)
    seen = [draws.turn(draws.number(update, 0.0)).notes["view"] for update in range(1, 2001)]
    shares = [seen.count(view) / 2000 for view in ("full", "partial", "adapter")]
    assert shares == pytest.approx([0.1, 0.3, 0.6], abs=0.03)


def test_route(subject: Subject) -> None:
    """Both sides' averages are kept; of each layer only the better side moves; the rest always does."""
    priors = {"full": 1.0, "partial": 0.2, "adapter": 0.5}
    sites = [Site(full, adapter) for full, adapter in adapted_layers(subject.model)]
    reference = references(subject, "adamw")
    for rows in reference.rows():
        before = {name: leaf.detach().clone() for name, leaf in reference.leaves.items()}
        reference.step(reference.gradients("whole", rows))
        for site in sites:
            scores = [
                _descent(reference, names, prior)
                for names, prior in ((site.full, 1.2), (site.adapter, priors["adapter"]))
            ]
            loser = site.adapter if scores[0] >= scores[1] else site.full
            with torch.no_grad():
                for name in loser:
                    reference.leaves[name].copy_(before[name])
    blend = Blend(Selected(frozenset(subject.parts)), subject.parts, constant(**priors))
    router = Router(sites, blend, named_weights(subject.model))
    assert_equal(train(subject, make_loss(TASK), blend, "adamw", router.around), reference)
    assert int(blend.memory[COUNTS].sum()) == NUM_UPDATES * len(sites)
    assert all(count > 0 for count in blend.memory[COUNTS].tolist())


def _descent(reference: Reference, names: tuple[str, ...], prior: float) -> float:
    total, elements = 0.0, 0
    for name in names:
        leaf = reference.leaves[name]
        memory = reference.optimizer.state[leaf]
        step = float(memory["step"])
        m, v = memory["exp_avg"] / (1 - 0.9**step), memory["exp_avg_sq"] / (1 - 0.999**step)
        rate = RATES[reference.it.parts[name]]
        total += float((rate * m**2 / (v.sqrt() + 1e-8)).sum())
        elements += leaf.numel()
    return prior * total / elements


def test_naive_weights_do_nothing_under_adamw(tmp_path: Path) -> None:
    """A loss weight on an exclusive group divides out; as a factor of the rate it counts."""
    bert = make_subject(ARCHITECTURES["bert"].save(tmp_path / "bert"))

    def moved(loss_weight: float, rate_factor: float) -> float:
        it = own(bert)
        start = copy_weights(it.model, it.names("full"))
        blend = Blend(Selected(it.names("full")), it.parts, constant(full=1.0))

        def naive(model: nn.Module, batch: Batch) -> Tensor:
            return loss_weight * TASK.summed_loss(model, batch)

        train(it, naive, blend, "adamw", factors={"full": rate_factor})
        now = copy_weights(it.model, it.names("full"))
        return math.hypot(*(float((now[name] - start[name]).norm()) for name in now))

    plain = moved(1.0, 1.0)
    for scale in (0.1, 10.0):
        assert moved(scale, 1.0) == pytest.approx(plain, rel=0.02)
        assert moved(1.0, scale) == pytest.approx(scale * plain, rel=0.2)


@pytest.mark.parametrize("kind", ["llama", "t5", "modernbert"])
def test_shared_layers_change_nothing(tmp_path: Path, kind: str) -> None:
    it = make_subject(ARCHITECTURES[kind].save(tmp_path / kind))
    layers = layers_before_adapters(it.model, it.state.roles())
    assert len(layers) == len(it.state.roles().stacks["layers"]) - 1
    blend = Blend(Selected(frozenset(it.parts)), it.parts, constant(full=1, adapter=1))
    blend.number(1, 0.0)
    found = []
    for shared in ((), layers):
        it.model.zero_grad()
        Views(TASK, blend, shared=tuple(shared))(it.model, it.updates[0][0]).backward()
        found.append({name: w.grad.clone() for name, w in named_weights(it.model).items() if w.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], rtol=1e-5, atol=1e-9) for name in found[0])
