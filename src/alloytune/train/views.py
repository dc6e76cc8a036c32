"""Losses of one model seen in several ways: the base alone, a part of it over a frozen base, adapters over the base.

What is frozen in a view stands still for its loss alone. The views are those of `alloytune.train.joint`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import combinations

from torch import Tensor, nn
from torch.func import functional_call

from alloytune.models.adapters import without_adapters
from alloytune.models.replay import Recorded, recording, replaying
from alloytune.models.tree import canonical_name
from alloytune.tasks.task import Batch, Task
from alloytune.train.joint import Blend, View
from alloytune.train.loop import Loss
from alloytune.train.regularize import divergence

Pass = Callable[[nn.Module, Batch], Tensor]


class Views:
    """The views of a model as a loss: the sum of weight times loss, and the divergence between each two views.

    `blend` knows the weights of the update. `frozen` are the base's values that the partial view sees, by name;
    `shared` the layers that give the same in the views with and without adapters, which run once for both and draw one
    dropout. A view whose weight is 0 is not run.
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
    ) -> None:
        self._task = task
        self._blend = blend
        self._label_smoothing = label_smoothing
        self._kl = kl
        self._frozen = frozen or {}
        self._shared = shared
        self._recorded: Recorded = {}
        self._passes: Mapping[View, Pass] = {"full": self._full, "partial": self._partial, "adapter": self._adapter}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the loss of a batch, summed over its targets."""
        weights = {view: weight for view, weight in self._blend.now.items() if weight}
        outputs = {view: self._passes[view](model, batch) for view in weights}
        self._recorded = {}
        losses = [
            weights[view] * self._task.loss(output, batch, self._label_smoothing) for view, output in outputs.items()
        ]
        if self._kl:
            pairs = combinations(outputs.values(), 2)
            losses += [0.5 * self._kl * divergence(one, other) for one, other in pairs]
        return sum(losses[1:], losses[0])

    def _full(self, model: nn.Module, batch: Batch) -> Tensor:
        """See the base without adapters; what of it goes for the adapter view as well is noted."""
        layers = self._shared if self._blend.now.get("adapter") else ()
        with without_adapters(model), recording(layers) as self._recorded:
            return self._task.outputs(model, batch)

    def _partial(self, model: nn.Module, batch: Batch) -> Tensor:
        """See the partial weights and the head over the frozen base."""
        names = {f"model.{name}": canonical_name(name) for name, _ in model.named_parameters()}
        frozen = {name: self._frozen[weight] for name, weight in names.items() if weight in self._frozen}
        with without_adapters(model):
            outputs: Tensor = functional_call(_WithOutputs(model, self._task), frozen, (batch,))
        return outputs

    def _adapter(self, model: nn.Module, batch: Batch) -> Tensor:
        """See the whole model; the base stands still."""
        parts = self._blend.parts
        base = [w for name, w in model.named_parameters() if parts.get(canonical_name(name)) in ("full", "partial")]
        with ExitStack() as stack:
            stack.enter_context(_standing_still(base))
            stack.enter_context(replaying(self._recorded))
            return self._task.outputs(model, batch)


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
