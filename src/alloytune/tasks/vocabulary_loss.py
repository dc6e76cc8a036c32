"""Cross-entropy over a vocabulary whose logits never stand in memory whole.

Of 2,000 tokens and 50,000 words they are 200 MB in bfloat16, and cross-entropy makes three copies in float32. Here the
gradient is taken along with the loss, a few tokens at a time (as in Liger Kernel, Hsu et al. 2024), so that nothing but
the gradients of the hidden states and of the output layer remains.
"""

from typing import Any

import torch
from torch import Tensor, nn

LOGITS_AT_ONCE = 2**25  # numbers; each part costs a pass over the gradient of the output layer's weights


def summed_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Give the sum over tokens of the cross-entropy of `head(hidden)`, in float32.

    `hidden` [tokens, width], `targets` [tokens] as word numbers; `label_smoothing` is the share of each target that is
    spread over all words. Products are in autocast's type, where it is on. The gradient is right for whatever the sum
    is multiplied by afterwards.
    """
    device = hidden.device.type
    lowered = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    with torch.autocast(device, enabled=False):
        loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, label_smoothing, lowered
        )
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        lowered: torch.dtype,
    ) -> Tensor:
        states, words = hidden.to(lowered), weight.to(lowered)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.zeros_like(hidden) if wants_hidden else None
        of_weight: Tensor | None = None
        of_bias = torch.zeros_like(bias) if bias is not None and wants_bias else None
        loss = hidden.new_zeros((), dtype=torch.float32)
        step = max(1, LOGITS_AT_ONCE // len(words))
        for start in range(0, len(states), step):
            some = slice(start, start + step)
            logits = states[some] @ words.T
            if bias is not None:
                logits += bias
            chances = logits.log_softmax(-1, dtype=torch.promote_types(lowered, torch.float32))
            chosen = targets[some, None]
            loss -= (1 - smoothing) * chances.gather(1, chosen).sum()
            if smoothing:
                loss -= smoothing * chances.mean(-1).sum()
            if not (wants_hidden or wants_weight or wants_bias):
                continue
            gradient = chances.exp_().sub_(smoothing / len(words)) if smoothing else chances.exp_()
            gradient.scatter_add_(1, chosen, gradient.new_full(chosen.shape, smoothing - 1))
            if of_bias is not None:
                of_bias += gradient.sum(0)
            down = gradient.to(lowered)
            if of_hidden is not None:
                of_hidden[some] = down @ words
            if wants_weight:  # added in one type: torch's way of adding bfloat16 to float32 takes twice as long
                part = (down.T @ states[some]).to(weight.dtype)
                of_weight = part if of_weight is None else of_weight.add_(part)
        ctx.gradients = [of_hidden, of_weight, of_bias]
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if one is None else one.mul_(gradients[0]) for one in ctx.gradients]
        del ctx.gradients  # they are spent
        return (*found, None, None, None)
