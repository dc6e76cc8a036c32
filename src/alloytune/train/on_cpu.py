"""Dropout, attention and linear layers for training on a processor: torch's own results, to rounding, sooner.

torch draws a float for every element that dropout looks at, by one thread: a quarter of the time of an update of
all-MiniLM-L6-v2. And it computes attention with dropout in float32, whatever type it is given.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

LEVELS = 256  # of the random byte that decides over an element
# Keys; where there are more, torch's fused attention is used, if it drops nothing: what is kept grows with the square.
# Forward and back in bfloat16, 9 heads 64 wide: 16 texts of 128 tokens 17 ms instead of 52, 4 of 512 30 instead of 38.
LONGEST_PLAIN = 512
# Keys, below which torch's softmax goes back element by element in bfloat16: 630 µs for 384 times 24 x 24 weights, 130
# by way of float32; from 32 on 70, where that takes 200.
FEWEST_LOWERED = 32

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

    `query`: [..., queries, width], `key` and `value`: [..., keys, width], with the same numbers before; `mask`:
    broadcast to [..., queries, keys], true where a key is seen, or numbers to add. `scale` is width ** -0.5 where
    absent. Where a query sees no key at all, its row is a mean over them. Softmax is taken in float32, products in
    autocast's type, or that of the value.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    added = None if mask is None else _added(mask, dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (each.to(dtype) for each in (query, key, value))
    attended: Tensor = _Attention.apply(query, key, value, added, p, scale)  # type: ignore[no-untyped-call]
    return attended


def _factors(inputs: Tensor, probability: float) -> Tensor:
    """Draw what each element is multiplied by, 1 / probability or 0, in the inputs' shape and type.

    A random byte below a bound keeps an element. The bound is drawn too, between the two whole numbers around
    256 * probability, so that each element is kept with that probability exactly. torch's generator gives the seed of a
    faster one: 64 random bits in 1.8 ns instead of 3.9.
    """
    bound = math.floor(probability * LEVELS + float(torch.rand(())))
    if bound == LEVELS:
        return torch.full_like(inputs, 1.0 / probability)
    words = np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw(-(-inputs.numel() // 8))
    drawn = torch.from_numpy(words.view(np.uint8)[: inputs.numel()]).view(inputs.shape)
    return torch.lt(drawn, bound, out=torch.empty_like(inputs)).mul_(1.0 / probability)


class _Attention(torch.autograd.Function):
    """Attention as one step with a gradient of its own: with fewer passes over the weights."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, p: float, scale: float
    ) -> Tensor:
        scores = _product(query, key.mT, scale)
        if added is not None:
            scores += added
        # torch's own in bfloat16 gives the same, but takes up to four times as long where 32 do not divide the keys
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        factors = _factors(weights, 1.0 - p) if p else None
        dropped = weights if factors is None else weights * factors
        ctx.save_for_backward(query, key, value, weights, factors, dropped)
        ctx.scale, ctx.added_shape = scale, None if added is None else added.shape
        attended: Tensor = dropped @ value
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, factors, dropped = ctx.saved_tensors
        of_weights = gradient @ value.mT
        if factors is not None:
            of_weights.mul_(factors)
        of_scores = _softmax_backward(of_weights, weights)
        of_added = of_scores.sum_to_size(ctx.added_shape) if ctx.needs_input_grad[3] else None
        of_query, of_key = _product(of_scores, key, ctx.scale), _product(of_scores.mT, query, ctx.scale)
        return of_query, of_key, dropped.mT @ gradient, of_added, None, None


def _product(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """Give one @ other * scale, rounded once."""
    product = torch.baddbmm(one.new_empty(1), one.flatten(0, -3), other.flatten(0, -3), beta=0, alpha=scale)
    unflattened: Tensor = product.unflatten(0, one.shape[:-2])
    return unflattened


def _softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    dtype = weights.dtype
    if dtype == torch.bfloat16 and weights.shape[-1] < FEWEST_LOWERED:
        gradient, weights = gradient.float(), weights.float()
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype).to(dtype)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Give a mask as numbers to add to scores of a type."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    state = (mask._version, dtype)
    known = _added_for.get(mask)
    if known is None or known[0] != state:
        numbers = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
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
    is_alike = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    is_fused_faster = dropout_p == 0.0 and (not trains or key.shape[-2] > LONGEST_PLAIN)
    if is_causal or enable_gqa or not is_alike or is_fused_faster:
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
