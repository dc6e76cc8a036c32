"""Views that learn something of their own, and weights that are found, against plain references in float64."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import tiny
from alloytune.models.adapters import Attachment, without_adapters
from alloytune.models.heads import MAIN
from alloytune.models.load import load_tokenizer
from alloytune.models.methods import LoraSettings
from alloytune.models.state import ModelState
from alloytune.models.weights import copy_weights, named_weights
from alloytune.selected import Selected
from alloytune.selection import resolve
from alloytune.tasks.task import Batch
from alloytune.train.balance import RATE, STRENGTH, ByGradients, ByUncertainty, ByValidation
from alloytune.train.batches import Updates
from alloytune.train.joint import VIEWS_OF, Blend, View
from alloytune.train.views import Learned, Views
from architectures import ARCHITECTURES
from train.test_joint import (
    KINDS,
    NUM_UPDATES,
    RATES,
    TASK,
    Exact,
    Grads,
    Subject,
    add,
    constant,
    load,
    make_subject,
    train,
    whole,
)

OTHER = Exact(("no", "perhaps", "yes"))  # another task: other labels, other rows
WEIGHTS: dict[View, float] = {"full": 0.3, "partial": 0.5, "adapter": 2.0}
SETTINGS = LoraSettings(rank=2, alpha=4, dropout=0.0)
ON = "layers[-1:] & (attention | mlp)"


def with_other(folder: Path) -> tuple[Subject, ModelState]:
    """Make a subject beside whose head stands that of OTHER, with rows of its own; and OTHER's model by itself."""
    it, head, alone = make_subject(folder, ON), load(folder, OTHER), load(folder, OTHER)
    it.state.add_head("own", head.model, head.fresh)
    it.state.turn_to(MAIN, ("own",))
    torch.manual_seed(9)
    weights = named_weights(it.model)
    with torch.no_grad():
        for name in sorted(it.state.beside_names):
            weights[name].normal_(0, 1)
    alone.attach(Attachment("lora", SETTINGS, resolve(ON, alone.roles(), "on"), 1), "attach")
    alone.model.double()
    tokenizer = load_tokenizer(str(folder))
    table = tiny.make_table(10, seed=3)
    examples = OTHER.encode(
        table.with_columns(label=table["label"].replace({"bad": "no", "good": "yes"})), tokenizer, 32
    )
    series = Updates(examples.examples, 8, 3, 6, partial(OTHER.collate, tokenizer=tokenizer)).after(0)
    updates = [
        [*batches, *(replace(batch, learning="own") for batch in next(series))] for batches in it.updates[:NUM_UPDATES]
    ]
    parts = it.parts | dict.fromkeys(it.state.beside_names, "head")
    return Subject(it.state, it.bare, updates, parts), alone


class Reference:
    """Holds the weights by name; every view is run on a model by itself, on all of its rows at once."""

    def __init__(self, it: Subject, alone: ModelState, own: View, kind: str) -> None:
        self.it = it
        self.own = own
        self.plain = own_copy(it)
        self.models: Mapping[bool, nn.Module] = {False: self.plain, True: alone.model}
        self.values = {name: w.detach().clone() for name, w in named_weights(it.model).items()}
        self.start = {name: w.clone() for name, w in self.values.items()}
        self.leaves = {name: nn.Parameter(w) for name, w in self.values.items()}
        groups = [
            {"params": [self.leaves[n] for n in sorted(it.names(part))], "lr": rate}  # type: ignore[arg-type]
            for part, rate in RATES.items()
        ]
        sgd = partial(torch.optim.SGD, momentum=0.9)
        self.optimizer = sgd(groups) if kind == "sgd" else torch.optim.AdamW(groups, weight_decay=0.0)

    def outputs(self, view: View, rows: Batch) -> tuple[Tensor, dict[str, nn.Parameter]]:
        """Run a view; also give what moves in it, by the subject's names."""
        is_own = view == self.own
        model = self.models[is_own]
        weights = {self._name(name, is_own): weight for name, weight in named_weights(model).items()}
        moving = {part for part, views in VIEWS_OF.items() if view in views}
        with torch.no_grad():
            for name, weight in weights.items():
                is_frozen = view == "partial" and self.it.parts[name] == "full"
                weight.copy_(self.start[name] if is_frozen else self.leaves[name])
                weight.requires_grad_(self.it.parts[name] in moving)
                weight.grad = None
        used = {name: weight for name, weight in weights.items() if weight.requires_grad}
        if view == "adapter":
            return TASK.outputs(model, rows), used
        with without_adapters(model):
            return TASK.outputs(model, rows), used

    def _name(self, name: str, is_own: bool) -> str:
        beside = f"beside.own.{name}"
        return beside if is_own and beside in self.it.parts else name

    def gradients(self, loss: Tensor, used: Mapping[str, nn.Parameter]) -> Grads:
        loss.backward()
        return {name: weight.grad.clone() for name, weight in used.items() if weight.grad is not None}

    def step(self, gradients: Grads) -> None:
        for name, leaf in self.leaves.items():
            leaf.grad = gradients.get(name)
        self.optimizer.step()

    def rows(self) -> list[dict[str | None, Batch]]:
        """Give each update's rows, by what they belong to, as one batch each."""
        padding = int(self.it.model.config.pad_token_id)
        return [
            {name: whole([b for b in batches if b.learning == name], padding) for name in (None, "own")}
            for batches in self.it.updates
        ]


def own_copy(it: Subject) -> nn.Module:
    """Give a model like the subject's that stands alone."""
    kept = it.state.heads.beside
    it.state.turn_to(MAIN)
    model = deepcopy(it.state.model)
    it.state.turn_to(MAIN, kept)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("own", "optimizer", "kl"), [("full", "adamw", 0.7), ("partial", "sgd", 0), ("adapter", "sgd", 0)]
)
def test_a_view_with_rows_and_a_head_of_its_own(
    tmp_path: Path, kind: str, own: View, optimizer: str, kl: float
) -> None:
    """Its loss is the mean over its own targets, however micro-batches are cut; the body takes both gradients."""
    it, alone = with_other(ARCHITECTURES[kind].save(tmp_path / kind))
    reference = Reference(it, alone, own, optimizer)
    others = [view for view in WEIGHTS if view != own]
    for rows in reference.rows():
        terms = []
        for view, weight in WEIGHTS.items():
            batch = rows["own" if view == own else None]
            logits, used = reference.outputs(view, batch)
            terms.append((weight, reference.gradients(cross_entropy(logits, batch.targets), used)))
        for one, other in [others, others[::-1]] if kl else []:
            still = log_softmax(reference.outputs(other, rows[None])[0].detach(), -1)
            logits, used = reference.outputs(one, rows[None])
            both = [(log_softmax(logits, -1), still), (still, log_softmax(logits, -1))]
            loss = sum(kl_div(p, q, log_target=True, reduction="batchmean") for p, q in both)
            assert isinstance(loss, Tensor)
            terms.append((0.5 * kl, reference.gradients(loss, used)))
        reference.step(add(*terms))
    heads = dict.fromkeys(it.state.beside_names, frozenset({own}))
    blend = Blend(Selected(frozenset(it.parts)), it.parts, constant(**WEIGHTS), heads)
    frozen = copy_weights(it.model, it.names("full"))
    learned = {own: Learned("own", OTHER, it.state.heads.model_of("own"))}
    train(it, Views(TASK, blend, kl=kl, frozen=frozen, own=learned), blend, optimizer)
    found = named_weights(it.model)
    worst = {name: float((found[name] - leaf).detach().abs().max()) for name, leaf in reference.leaves.items()}
    assert max(worst.values()) < 1e-10, max(worst, key=worst.__getitem__)
    moved = {name for name, leaf in reference.leaves.items() if not torch.equal(leaf, reference.start[name])}
    assert moved & it.state.beside_names
    assert {it.parts[name] for name in moved} == set(it.parts.values())


def test_what_stands_beside_is_one_body(tmp_path: Path) -> None:
    """Ties hold, adapters are seen, and afterwards each model is by itself again, with the same values."""
    it, _ = with_other(ARCHITECTURES["bert"].save(tmp_path / "bert"))
    state, other = it.state, it.state.heads.model_of("own")
    assert other.bert.encoder is state.model.bert.encoder
    assert any("lora_A" in name for name, _ in other.named_parameters())
    assert all(name.startswith("beside.own.") for name in state.beside_names)
    stored = state.touched_weights()
    assert {"own:classifier.weight", "classifier.weight"} <= stored.keys()
    assert not any("beside" in name for name in stored)
    state.turn_to(MAIN)
    assert other.bert.encoder is not state.model.bert.encoder
    assert not any("lora_A" in name for name, _ in other.named_parameters())
    assert state.touched_weights().keys() == stored.keys()
    ours, theirs = named_weights(state.model), named_weights(other)
    name = "bert.encoder.layer.1.output.dense.weight"
    assert ours[name] is not theirs[name]
    assert ours[name].data_ptr() == theirs[name].data_ptr()


def views_of(it: Subject, blend: Blend) -> Views:
    return Views(TASK, blend, frozen=copy_weights(it.model, it.names("full")))


def losses_and_norms(
    it: Subject, view: View, names: list[str], rows: Batch, start: Mapping[str, Tensor]
) -> list[float]:
    """Give a view's mean loss, and the norm of its gradient on some weights, one after another."""
    blend = Blend(Selected(frozenset(it.parts)), it.parts, constant(**{view: 1.0}))
    blend.number(1, 0.0)
    views = Views(TASK, blend, frozen={name: start[name] for name in it.names("full")})
    loss = views(it.model, rows) / rows.num_targets
    weights = named_weights(it.model)
    gradients = torch.autograd.grad(loss, [weights[name] for name in names], materialize_grads=True)
    return [float(loss.detach()), math.hypot(*(float(gradient.norm()) for gradient in gradients))]


def test_gradnorm_takes_the_papers_step(tmp_path: Path) -> None:
    """w <- w - rate * n * sign(w n - mean(w n) r^a), n in units of its mean; then a mean of 1."""
    it = make_subject(ARCHITECTURES["bert"].save(tmp_path / "bert"))
    names = sorted(it.names("head"))
    start = copy_weights(it.model, named_weights(it.model))
    blend = Blend(Selected(frozenset(it.parts)), it.parts, constant(full=1, partial=1, adapter=1))
    weights = named_weights(it.model)
    blend.balance = ByGradients(blend, list(WEIGHTS), [weights[name] for name in names])
    expected, first, seen = dict.fromkeys(WEIGHTS, 1.0), {}, []
    original = blend.balance.around

    def around(optimizer: object) -> object:
        rows = whole(it.updates[len(seen)], 0)
        found = {view: losses_and_norms(it, view, names, rows, start) for view in WEIGHTS}
        seen.append(found)
        return original(optimizer)  # type: ignore[arg-type]

    train(it, views_of(it, blend), blend, "adamw", around)  # type: ignore[arg-type]
    for found in seen:
        losses, norms = ({view: pair[n] for view, pair in found.items()} for n in (0, 1))
        first = first or losses
        left = {view: losses[view] / first[view] for view in losses}
        left = {view: value / (sum(left.values()) / 3) for view, value in left.items()}
        pulls = {view: expected[view] * norms[view] for view in norms}
        for view in expected:
            target = sum(pulls.values()) / 3 * left[view] ** STRENGTH
            sign = (pulls[view] > target) - (pulls[view] < target)
            expected[view] -= RATE * norms[view] / (sum(norms.values()) / 3) * sign
        expected = {view: value / (sum(expected.values()) / 3) for view, value in expected.items()}
    blend.number(NUM_UPDATES + 1, 1.0)
    assert blend.now == pytest.approx(expected, rel=1e-9)
    assert len(set(blend.now.values())) == 3


def test_gradnorm_evens_out_the_pulls(tmp_path: Path) -> None:
    """A view whose loss is a hundred times larger ends with about a hundredth of the other's weight."""
    it = make_subject(ARCHITECTURES["bert"].save(tmp_path / "bert"))
    shared = [nn.Parameter(torch.ones(3, dtype=torch.float64))]
    blend = Blend(Selected(frozenset()), {}, constant(full=1, adapter=1))
    balance = ByGradients(blend, ["full", "adapter"], shared)
    batch = it.updates[0][0]
    for update in range(1, 400):
        blend.number(update, 0.0)
        balance.note({"full": 9 * shared[0].sum(), "adapter": shared[0].sum()}, batch)
        with balance.around(None):  # type: ignore[arg-type]
            pass
    blend.number(400, 0.0)
    assert blend.now["full"] * 9 == pytest.approx(blend.now["adapter"], rel=0.3)
    assert sum(blend.now.values()) == pytest.approx(2)


def test_uncertainty_draws_near_to_half_over_the_loss(tmp_path: Path) -> None:
    it = make_subject(ARCHITECTURES["bert"].save(tmp_path / "bert"))
    blend = Blend(Selected(frozenset()), {}, constant(full=1, adapter=1))
    balance = ByUncertainty(blend, ["full", "adapter"])
    batch = it.updates[0][0]
    for update in range(1, 1001):
        blend.number(update, 0.0)
        losses = {"full": torch.tensor(2.0), "adapter": torch.tensor(0.25)}
        balance.note({view: loss * batch.num_targets for view, loss in losses.items()}, batch)
        with balance.around(None):  # type: ignore[arg-type]
            pass
        if update == 1:
            blend.number(2, 0.0)
            assert blend.now["full"] == pytest.approx(math.exp(-RATE * 1.5))
    blend.number(1001, 0.0)
    assert blend.now == pytest.approx({"full": 0.25, "adapter": 2.0}, rel=1e-3)


def test_validation_weighs_what_has_learned_least() -> None:
    blend = Blend(Selected(frozenset()), {}, constant(full=1, partial=0.5, adapter=1))
    finding = ByValidation(blend, ["full", "adapter"])
    finding.after_evaluation({"full": 3.0, "adapter": 0.6})
    blend.number(1, 0.0)
    assert blend.now == {"full": 1.0, "partial": 0.5, "adapter": 1.0}
    finding.after_evaluation({"full": 1.5, "adapter": 0.45})  # a half and three quarters are left
    blend.number(2, 0.0)
    assert blend.now == {"full": pytest.approx(0.8), "partial": 0.5, "adapter": pytest.approx(1.2)}
