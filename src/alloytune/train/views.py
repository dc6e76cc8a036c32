"""Losses of one model seen in several ways: the base alone, a part of it over a frozen base, adapters over the base.

What is frozen in a view stands still for its loss alone. The views are those of `alloytune.train.joint`. A view may
learn something of its own: its batches go through a model with its own head, whose body is the very same.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from alloytune.models.adapters import without_adapters
from alloytune.models.replay import Recorded, recording, replaying
from alloytune.models.tree import canonical_name
from alloytune.models.weights import named_weights
from alloytune.tasks.task import Batch, Task
from alloytune.train.joint import Blend, Losses, View
from alloytune.train.loop import Loss
from alloytune.train.regularize import divergence

Pass = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Learned:
    """What a view learns of its own: its name among the batches, its task, and the model with its head."""

    name: str
    task: Task
    model: nn.Module


class Views:
    """The views of a model as a loss: the sum of weight times loss, and the divergence between each two views.

    `blend` knows the weights of the update. `frozen` are the base's values that the partial view sees, by name;
    `shared` the layers that give the same in the views with and without adapters, which run once for both and draw one
    dropout. A view whose weight is 0 is not run. Views that learn something of their `own` see the batches that bear
    its name, the others those that bear none; only views of the same batch diverge from each other. The
    blend's balance is told the views' losses, unweighted.
    """

    def __init__(
        self,
        task: Task,
        blend: Blend,
        *,
        label_smoothing: float = 0.0,
        kl: float = 0.0,
        frozen: Mapping[str, Tensor] | None = None,
        shared: tuple[nn.Module, ...] = (),
        own: Mapping[View, Learned] | None = None,
    ) -> None:
        self._task = task
        self._blend = blend
        self._label_smoothing = label_smoothing
        self._kl = kl
        self._frozen = frozen or {}
        self._shared = shared
        self._own = own or {}
        self._recorded: Recorded = {}
        self._passes: Mapping[View, Pass] = {"full": self._full, "partial": self._partial, "adapter": self._adapter}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the loss of a batch, summed over its targets."""
        weights = {view: weight for view, weight in self._blend.now.items() if weight and self._sees(view, batch)}
        if not weights:
            return torch.zeros((), device=batch.targets.device, requires_grad=True)
        outputs = self._outputs(model, batch, weights)
        losses = self._losses(outputs, batch)
        if self._blend.balance:
            self._blend.balance.note(losses, batch)
        terms = [weights[view] * loss for view, loss in losses.items()]
        if self._kl:
            pairs = combinations(outputs.values(), 2)
            terms += [0.5 * self._kl * divergence(one, other) for one, other in pairs]
        return sum(terms[1:], terms[0])

    @torch.inference_mode()
    def means(self, model: nn.Module, batches: Iterable[Batch], views: Iterable[View]) -> dict[View, float]:
        """Give the mean loss of each of these views over the targets of all its batches; nothing is noted."""
        sums, targets = Counter[View](), Counter[View]()
        wanted = list(views)
        for batch in batches:
            seeing = [view for view in wanted if self._sees(view, batch)]
            for view, loss in self._losses(self._outputs(model, batch, seeing), batch).items():
                sums[view] += float(loss)  # type: ignore[assignment]
                targets[view] += batch.num_targets
        return {view: sums[view] / targets[view] for view in wanted}

    def _sees(self, view: View, batch: Batch) -> bool:
        own = self._own.get(view)
        return batch.learning == (own.name if own else None)

    def _outputs(self, model: nn.Module, batch: Batch, views: Iterable[View]) -> dict[View, Tensor]:
        outputs = {view: self._passes[view](model, batch) for view in views}
        self._recorded = {}
        return outputs

    def _losses(self, outputs: Mapping[View, Tensor], batch: Batch) -> Losses:
        return {view: self._task_of(view).loss(it, batch, self._label_smoothing) for view, it in outputs.items()}

    def _task_of(self, view: View) -> Task:
        return self._own[view].task if view in self._own else self._task

    def _with_head(self, view: View, model: nn.Module) -> nn.Module:
        return self._own[view].model if view in self._own else model

    def _full(self, model: nn.Module, batch: Batch) -> Tensor:
        """See the base without adapters; what of it goes for the adapter view as well is noted."""
        layers = self._shared if self._blend.now.get("adapter") and self._sees("adapter", batch) else ()
        with without_adapters(model), recording(layers) as self._recorded:
            return self._task_of("full").outputs(self._with_head("full", model), batch)

    def _partial(self, model: nn.Module, batch: Batch) -> Tensor:
        """See the partial weights and the head over the frozen base."""
        values = {weight: self._frozen[name] for name, weight in named_weights(model).items() if name in self._frozen}
        whole = _WithOutputs(self._with_head("partial", model), self._task_of("partial"))
        frozen = {
            f"{path}.{key}": values[weight]
            for path, module in whole.named_modules()
            for key, weight in module.named_parameters(recurse=False)
            if weight in values
        }
        with without_adapters(model):
            # every place is named once: torch's own search for ties would not put back what two paths lead to
            outputs: Tensor = functional_call(whole, frozen, (batch,), tie_weights=False)
        return outputs

    def _adapter(self, model: nn.Module, batch: Batch) -> Tensor:
        """See the whole model; the base stands still."""
        parts = self._blend.parts
        base = [w for name, w in model.named_parameters() if parts.get(canonical_name(name)) in ("full", "partial")]
        with ExitStack() as stack:
            stack.enter_context(_standing_still(base))
            stack.enter_context(replaying(self._recorded))
            return self._task_of("adapter").outputs(self._with_head("adapter", model), batch)


class _WithOutputs(nn.Module):
    """A model with what its task reads off it, as one module to call."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: Batch) -> Tensor:
        return self._task.outputs(self.model, batch)


@contextmanager
def _standing_still(weights: list[nn.Parameter]) -> Iterator[None]:
    """Keep weights out of the graphs that are built within."""
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, moves in zip(weights, before, strict=True):
            weight.requires_grad_(moves)


def with_adapters_that_move(summed_loss: Loss, adapters: frozenset[str]) -> Loss:
    """Give the loss of a model whose adapters are off while none of their weights, by canonical name, moves."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        moving = (weight for name, weight in model.named_parameters() if canonical_name(name) in adapters)
        if any(weight.requires_grad for weight in moving):
            return summed_loss(model, batch)
        with without_adapters(model):
            return summed_loss(model, batch)

    return loss
