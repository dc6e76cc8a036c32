"""Several examples in one row, without any of them seeing another.

Positions begin anew at every example, and the model gets no mask of padding: transformers then lets tokens attend only
to what stands before them in their own example (`transformers.masking_utils.find_packed_sequence_indices`). Rows stay
as long as the longest example, so that packing takes away padding and never adds to what attention costs.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from alloytune.trying import agree, evaluating

_packs: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Packed:
    """Where the tokens of padded examples stand in packed rows. All are [tokens], in the examples' order.

    Token n is at (`old_row`, `old_place`) of the examples and at (`row`, `place`) of `num_rows` rows of `length`.
    """

    old_row: Tensor
    old_place: Tensor
    row: Tensor
    place: Tensor
    num_rows: int
    length: int

    def inputs(self, input_ids: Tensor) -> dict[str, Any]:
        """Give what a model is called with. The rest of a row counts on as one more example of its own."""
        ids = input_ids.new_zeros(self.num_rows, self.length)
        ids[self.row, self.place] = input_ids[self.old_row, self.old_place]
        positions = _rest_positions(self)
        positions[self.row, self.place] = self.old_place
        return {"input_ids": ids, "position_ids": positions, "use_cache": False}  # a cache would undo the packing

    def rows_of(self, chosen: Tensor) -> Tensor:
        """Move a mask over the examples, [examples, tokens], to the packed rows."""
        moved = chosen.new_zeros(self.num_rows, self.length)
        moved[self.row, self.place] = chosen[self.old_row, self.old_place]
        return moved

    def order(self, chosen: Tensor) -> Tensor:
        """Give for each chosen position, in the examples' order, its number among those chosen in the packed rows."""
        numbers = (self.rows_of(chosen).flatten().cumsum(0) - 1).view(self.num_rows, self.length)
        return numbers[self.row, self.place][chosen[self.old_row, self.old_place]]


def pack(attention_mask: Tensor) -> Packed:
    """Lay examples, padded on the right, into as few rows as first-fit by falling length finds; [examples, tokens]."""
    lengths = attention_mask.sum(1).tolist()
    rows: list[int] = []  # what each row has taken
    starts: dict[int, tuple[int, int]] = {}
    for example in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        fitting = (n for n, taken in enumerate(rows) if taken + lengths[example] <= attention_mask.shape[1])
        chosen = next(fitting, len(rows))
        if chosen == len(rows):
            rows.append(0)
        starts[example] = (chosen, rows[chosen])
        rows[chosen] += lengths[example]
    old_row, old_place = attention_mask.nonzero(as_tuple=True)
    first = torch.tensor([starts[n] for n in range(len(lengths))], device=attention_mask.device)
    row, start = first[old_row].unbind(1)
    return Packed(old_row, old_place, row, start + old_place, len(rows), max(rows))


@torch.no_grad()
def can_pack(model: Any) -> bool:
    """Tell whether a model keeps packed examples apart, by trying it once on two of them.

    Models with other positions than numbers, or that read in one direction without attention, do not.
    """
    if model not in _packs:
        _packs[model] = _keeps_apart(model)
    return _packs[model]


def _keeps_apart(model: Any) -> bool:
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    ids = torch.arange(1, 9, device=model.device) * 7 % vocabulary
    apart = ids.view(2, 4)
    packed = pack(torch.ones(2, 4, dtype=torch.long, device=model.device))
    packed = Packed(packed.old_row, packed.old_place, torch.zeros_like(packed.row), torch.arange(8).to(ids), 1, 8)
    try:
        with evaluating(model), torch.autocast(ids.device.type, enabled=False):  # rounds too coarsely to tell
            expected = model(input_ids=apart, attention_mask=torch.ones_like(apart), use_cache=False).logits
            found = model(**packed.inputs(apart)).logits
    except (TypeError, ValueError, IndexError, RuntimeError):  # an architecture that does not know position_ids
        return False
    return agree(found.view_as(expected), expected)


def _rest_positions(packed: Packed) -> Tensor:
    """Give positions that begin at 0 behind the last example of each row, [rows, length]."""
    ends = packed.row.new_zeros(packed.num_rows)
    ends.scatter_reduce_(0, packed.row, packed.place + 1, "amax")
    places = torch.arange(packed.length, device=ends.device).expand(packed.num_rows, -1)
    return (places - ends[:, None]).clamp(min=0)
