"""Direct preference optimisation: the loss of pairs of answers (Rafailov et al. 2023)."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid


def answer_logps(logits: Tensor, targets: Tensor, texts: Tensor, num_texts: int) -> Tensor:
    """Give the log-probability of each text's answer: the sum over its tokens, each given all before it.

    `logits` [tokens, words] are those that foretell the tokens `targets` [tokens] of the texts `texts` [tokens].
    Gives [num_texts], in float32.
    """
    of_tokens = -cross_entropy(logits.float(), targets, reduction="none")
    return torch.zeros(num_texts, device=logits.device).index_add(0, texts, of_tokens)


def dpo_losses(logps: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Give the loss of each pair: how far the chosen answer has not yet gained on the rejected one, [pairs].

    `logps` [pairs, 2] are log-probabilities of chosen and rejected answers, `reference` [pairs, 2] the same by the
    weights to stay near. The larger `beta`, the dearer it is to leave these.
    """
    gained = logps - reference
    return -logsigmoid(beta * (gained[:, 0] - gained[:, 1]))
