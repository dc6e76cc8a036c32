"""Dropout, attention and linear layers for training on a processor: torch's own results, to rounding, sooner.

torch draws a float for every element that dropout looks at, by one thread: a quarter of the time of an update of
all-MiniLM-L6-v2. And it computes attention with dropout in float32, whatever type it is given.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

BITS = 16  # that decide over an element: its probability is exact to 2 ** -16
# Keys; where there are more, torch's fused attention is used, if it drops nothing: what is kept grows with the square.
# Forward and back in bfloat16, 9 heads 64 wide: 16 texts of 128 tokens 17 ms instead of 52, 4 of 512 30 instead of 38.
LONGEST_PLAIN = 512

_added_for = WeakTensorKeyDictionary()  # masks as numbers, which all layers of a call add


def training_ops(device: torch.device) -> AbstractContextManager[Any]:
    """Give the context in which a model is trained on a device.

    Passes that torch runs again for the gradient, as in checkpointing, must be run again within it: they would draw
    other numbers outside.
    """
    return _OnCpu() if device.type == "cpu" else nullcontext()


def dropout(inputs: Tensor, p: float = 0.5) -> Tensor:
    """Set each element to zero with probability `p` and divide the others by 1 - p; draws from torch's generator."""
    if not 0.0 < p < 1.0:
        return functional.dropout(inputs, p, training=True)
    return inputs * _factors(inputs, 1.0 - p)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, p: float = 0.0, scale: float | None = None
) -> Tensor:
    """Give softmax(query @ key.T * scale + mask), each weight dropped with probability `p`, @ value.

    `query`: [..., queries, width], `key` and `value`: [..., keys, width]; `mask`: broadcast to [..., queries, keys],
    true where a key is seen, or numbers to add. `scale` is width ** -0.5 where absent. Where a query sees no key at
    all, its row is a mean over them. Softmax is taken in float32, products in the type of the arguments.
    """
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if mask is not None:
        scores += _added(mask, scores)
    weights = _Softmax.apply(scores).to(value.dtype)  # type: ignore[no-untyped-call]
    return (dropout(weights, p) if p else weights) @ value


def _factors(inputs: Tensor, probability: float) -> Tensor:
    """Draw what each element is multiplied by, 1 / probability or 0, in the inputs' shape and type.

    torch's generator gives the seed of a faster one: 1.8 ns for each word of 64 random bits, of which four elements get
    theirs, instead of 3.9.
    """
    words = np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw(-(-inputs.numel() * BITS // 64))
    drawn = torch.from_numpy(words.view(np.int16)[: inputs.numel()]).view(inputs.shape)
    bound = min(round(probability * 2**BITS), 2**BITS - 1) - 2 ** (BITS - 1)
    return torch.lt(drawn, bound, out=torch.empty_like(inputs)).mul_(1.0 / probability)


class _Softmax(torch.autograd.Function):
    """Softmax over the last dimension, taken in float32; its result alone is kept, in the type of the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        # torch's own in bfloat16 gives the same, but takes twice as long where 32 do not divide the number of keys
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return torch._softmax_backward_data(gradients[0], weights, -1, weights.dtype)


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """Give a mask as numbers to add to the scores, in their type."""
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    state = (mask._version, scores.dtype)
    known = _added_for.get(mask)
    if known is None or known[0] != state:
        numbers = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
        known = _added_for[mask] = state, numbers
    added: Tensor = known[1]
    return added


def _functional_dropout(inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or inplace or not inputs.is_floating_point():
        return functional.dropout(inputs, p, training, inplace)
    return dropout(inputs, p)


def _functional_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    trains = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    # With dropout also where no gradient is wanted: the same seed then draws the same in both.
    if is_causal or enable_gqa or (dropout_p == 0.0 and (not trains or key.shape[-2] > LONGEST_PLAIN)):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return attention(query, key, value, attn_mask, dropout_p, scale)


class Lowered:
    """Linear layers under autocast that share what they lower: autocast itself copies anew for every layer.

    An input is copied once for layers that read it one after another, such as query, key, value and what LoRA puts
    beside them; a weight that stands still once for as long as it does.
    """

    def __init__(self) -> None:
        self._input: tuple[Tensor, int, bool, Tensor] | None = None
        self._still = WeakTensorKeyDictionary()

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Give inputs @ weight.T + bias."""
        if torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and inputs.dtype == torch.float32:
            inputs = self._lowered_input(inputs)
        if torch.is_autocast_enabled("cpu") and inputs.requires_grad and isinstance(weight, nn.Parameter):
            weight = self._lowered_weight(weight)
        return functional.linear(inputs, weight, bias)

    def _lowered_input(self, inputs: Tensor) -> Tensor:
        now = (inputs, inputs._version, inputs.requires_grad)
        if self._input is None or self._input[0] is not inputs or self._input[1:3] != now[1:]:
            self._input = (*now, inputs.to(torch.get_autocast_dtype("cpu")))
        return self._input[3]

    def _lowered_weight(self, weight: Tensor) -> Tensor:
        if weight.requires_grad:
            self._still.pop(weight, None)
            return weight
        state = (weight._version, weight.data_ptr())
        known = self._still.get(weight)
        if known is None or known[0] != state:
            known = self._still[weight] = state, weight.to(torch.get_autocast_dtype("cpu"))
        lowered: Tensor = known[1]
        return lowered


class _OnCpu(TorchFunctionMode):
    """Has these functions of torch's computed in the ways above."""

    def __init__(self) -> None:
        super().__init__()
        self._ways: Mapping[Callable[..., Any], Callable[..., Any]] = {
            functional.dropout: _functional_dropout,
            functional.linear: Lowered().linear,
            functional.scaled_dot_product_attention: _functional_attention,
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._ways.get(func, func)(*args, **(kwargs or {}))
