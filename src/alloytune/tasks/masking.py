"""Which tokens of a text are hidden, and behind what (Devlin et al. 2019)."""

from collections.abc import Sequence

import numpy as np

IGNORED = -100  # what stands for the target of a position that carries no loss, in transformers and torch
_BEHIND_MASK, _BEHIND_OTHER = 0.8, 0.1  # of the chosen; the rest stay as they are


def hide(
    ids: Sequence[int],
    places: Sequence[int],
    mask_id: int,
    num_words: int,
    share: float,
    random: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """Choose a share of `places` in a text, rounded, but one at least; give what is read, and the targets.

    Of the chosen, 80 % are read as the mask, 10 % as any of `num_words` tokens, and 10 % as they are. Targets are
    IGNORED where nothing was chosen.
    """
    num_chosen = min(len(places), max(1, round(share * len(places))))
    chosen = random.permutation(np.array(places, dtype=int))[:num_chosen]
    kinds, others = random.random(num_chosen), random.integers(num_words, size=num_chosen)
    read, targets = list(ids), [IGNORED] * len(ids)
    for place, kind, other in zip(chosen.tolist(), kinds, others.tolist(), strict=True):
        targets[place] = ids[place]
        if kind < _BEHIND_MASK:
            read[place] = mask_id
        elif kind < _BEHIND_MASK + _BEHIND_OTHER:
            read[place] = other
    return read, targets
