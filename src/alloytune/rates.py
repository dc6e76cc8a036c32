"""Where the search behind `rate: auto` starts: from what moves, how large the model is, what an earlier stage trained.

The rates were measured on all-MiniLM-L6-v2; that of the head alone on few rows: accuracy 0.76 on `banking77` (1,500
rows) at 5e-2 against 0.69 at 2e-2, 0.40 against 0.33 on `trec` (500), the same on `sst2`; that of biases on `trec`
(1,000): 0.85 at 2e-3, 0.89 at 5e-3, 0.91 at 1e-2; that of scaled rates on `trec` (1,000): 0.93 at 3e-3 in all five
stages of `surgical`, 0.37 at 3e-4 that went on at 9e-5; those of adapters with few weights on `trec` (1,000): VeRA 0.64
at 6e-3, 0.90 at 1e-2, 0.93 at 3e-2, (IA)3 0.87, 0.92, 0.93, prefixes 0.52, 0.78, 0.89; AdaLoRA 0.89 at 3e-3, 0.95 at
1e-2, 0.94 at 3e-2. A new head beside other weights wants more than they do, or they move before it has learned: on
`banking77` (3,000) full 0.85 with a head at 5e-4 as the body, 0.87 at 3e-3, 0.88 at 1e-2 and at 3e-2, LoRA 0.82 at 3e-3
as the adapter, 0.89 at 1e-2, 0.89 at 3e-2; on `trec` (1,000) full 0.94, 0.92, 0.94, 0.93, LoRA 0.93, 0.91, 0.94. The
last two layers at 1e-3 keep up with it: 0.89 on `banking77` either way, on `trec` 0.95 with it at their rate and 0.94
at its own, on `zh_reviews` 0.85 and 0.84.

Larger models want lower ones. multilingual-e5-small, twice as deep, wants three tenths: on `trec` (1,000 rows) full
0.95 at 1e-4, 0.94 at 1.6e-4 and 0.93 at 3e-4, LoRA 0.95 from 8e-4 to 1.6e-3, full with a new head (and pooler) at 1e-3
0.956, at 3e-3 0.964, at 1e-2 0.952, at the body's rate 0.938; on `zh_reviews` (2,000) full 0.853 at 5e-5, 0.846 at 1e-4
and 0.77 at 2.3e-4. From there rates go down more slowly, so that they meet the usual 2e-5 to 5e-5 for full fine-tuning
and 2e-4 to 5e-4 for adapters at the size of BERT-base. The last layers care less for how many are below them (0.93 at
3e-4, 0.94 at 5.4e-4, 0.93 at 1e-3 on `trec`). Rates of the head alone and of adapters with few weights go down half as
steeply, which meets VeRA's 1e-2 (Kopiczko et al. 2024) and the 5e-3 to 1e-2 of prefixes (Liu et al. 2022, P-tuning v2).
Smaller models keep the measured rate. Decoders of 0.3 to 3 billion weights are usually trained in full at 2e-5 to 5e-5,
larger ones at 1e-5 to 2e-5; T5 "needs a slightly higher learning rate ... 1e-4 and 3e-4 work well" (its page in
transformers' documentation).
"""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["full", "partial", "vectors", "scaled", "adapter", "adalora", "few", "head", "new head"]
Family = Literal["encoder", "decoder", "t5"]

MEASURED_BODY = 10_646_784  # weights in the layers of all-MiniLM-L6-v2
AT_TWICE = 0.3  # of its rates suit multilingual-e5-small, which has twice as many
FURTHER = 0.8  # power of the size by which rates go down from there
AGAIN = 0.3  # of the rate, where an earlier stage has moved pretrained weights


@dataclass(frozen=True)
class Start:
    """A measured rate, where it stops falling with the body's size, and how steeply it falls beside the others."""

    rate: float
    least: float
    steepness: float = 1.0


STARTS: dict[Kind, Start] = {
    "full": Start(3e-4, 1e-5),
    "partial": Start(1e-3, 2e-5, 0.7),
    "vectors": Start(6e-3, 2e-4),
    "scaled": Start(3e-3, 1e-4),
    "adapter": Start(3e-3, 2e-4),
    "adalora": Start(1e-2, 6e-4),
    "few": Start(3e-2, 3e-3, 0.5),
    "head": Start(6e-2, 1e-3, 0.5),
    "new head": Start(1e-2, 3e-4),
}
LEAST_IN_FULL: dict[Family, float] = {"decoder": 2e-5, "t5": 1e-4}  # where a family does not go as low as others
LARGE = 5_000_000_000  # weights in the layers of models that all go as low
KINDS_OF_ADAPTERS: dict[str, Kind] = {"adalora": "adalora", "vera": "few", "ia3": "few", "prefix": "few"}


def adapter_rate(kind: str, num_body: int, reach: float = 1.0, *, again: bool = False) -> float:
    """Give the starting rate of an adapter, by the recipe's word for its kind.

    One that reaches further goes more slowly, by the root of that. LoRA, alpha twice the rank, on `trec` (1,000): rank
    2 0.92 at 3e-3 and 0.91 at 6e-3, rank 8 0.93 at 3e-3, rank 32 0.84 at 3e-3, 0.94 at 1.5e-3 and 0.92 at 7.5e-4;
    rsLoRA of rank 64 0.13 at 3e-3 and 0.89 at 4e-4. Bottlenecks of reduction 2: in sequence 0.92 at 3e-3 and at 1e-3,
    0.85 at 3e-4; in parallel beside prefixes (`mam-like`) 0.13 and 0.49 at 3e-3, 0.92 at 1e-3.
    """
    return auto_rate(KINDS_OF_ADAPTERS.get(kind, "adapter"), num_body, again=again) / math.sqrt(max(reach, 1.0))


def auto_rate(kind: Kind, num_body: int, family: Family = "encoder", *, again: bool = False) -> float:
    """Give the starting rate for weights of a kind in a model with `num_body` weights in its layers.

    `full` is half of the layers or more, `partial` any smaller part of the pretrained weights, `vectors` biases and
    norms alone, `head` the head alone, `new head` one that no file held beside others; `scaled` is the largest rate
    where every tensor trains at a share of it, most of them at less than a fiftieth; `few` are adapters with a few
    weights in a layer.
    all-MiniLM-L6-v2, full: 3e-4. BERT-base (85 million), full: 3e-5; adapter: 3e-4. A Llama of a billion, full: 2e-5.
    """
    start = STARTS[kind]
    least = LEAST_IN_FULL.get(family, 0.0) if kind == "full" and num_body < LARGE else 0.0
    rate = max(start.rate * math.pow(_fall(num_body), start.steepness), start.least, least)
    return rate * AGAIN if again else rate


def _fall(num_body: int) -> float:
    """Give the part of its measured rate that suits a model of a size."""
    size = max(num_body, MEASURED_BODY) / MEASURED_BODY
    return math.pow(AT_TWICE, min(math.log2(size), 1.0)) * math.pow(max(size / 2, 1.0), -FURTHER)
