"""What is raced: model, rows and stages of every case. Nothing here imports more than the standard library."""

from dataclasses import dataclass, field
from typing import Any, Literal

Method = Literal["full", "top", "head", "lora", "lora-top", "joint"]
RANK, ALPHA = 8, 16  # of every LoRA
BATCH = 32
WARMUP = 0.06  # share of the updates in which the rate rises
SEED = 0


@dataclass(frozen=True)
class Stage:
    """One training of a case, by a fixed rate."""

    method: Method
    epochs: int
    rate: float


@dataclass(frozen=True)
class Case:
    """A model, so many rows of a data set before they are split, and one or more trainings, one after another.

    `target` is the least ratio to the tuned Trainer that the project sets out for.
    """

    title: str
    data: str
    rows: int
    stages: tuple[Stage, ...]
    model: str = "minilm"
    num_layers: int = 6
    top: int = 2  # layers that `top` moves and that get the adapter of `lora-top`
    batch: int = BATCH
    max_length: int = 512
    target: float | None = None
    others: tuple[str, ...] = field(default=())  # contenders beside this project and the tuned Trainer

    @property
    def is_writing(self) -> bool:
        """Tell whether texts are written, not labelled."""
        return self.data == "alpaca"

    def share_frozen(self, stage: Stage) -> float:
        """Give the share of the layers that lie below all that moves."""
        below = {"top": self.num_layers - self.top, "lora-top": self.num_layers - self.top, "head": self.num_layers}
        return below.get(stage.method, 0) / self.num_layers


FULL, TOP, HEAD = Stage("full", 2, 3e-4), Stage("top", 3, 1e-3), Stage("head", 5, 3e-3)
LORA, LORA_TOP = Stage("lora", 2, 3e-3), Stage("lora-top", 3, 3e-3)
HYBRID = (FULL, Stage("top", 1, 3e-4), Stage("lora", 1, 9e-4))

# The first ones matter most: a run that is cut short has those.
CASES = {
    "full": Case("full fine-tuning", "sst2", 800, (FULL,), target=1.6, others=("defaults",)),
    "top": Case("last 2 of 6 layers, three epochs", "sst2", 800, (TOP,), target=2.2),
    "top-12": Case(
        "last 2 of 12 layers, three epochs",
        "zh_reviews",
        400,
        (TOP,),
        model="e5",
        num_layers=12,
        max_length=128,
        target=3.0,
    ),
    "head": Case("head only, five epochs", "sst2", 800, (HEAD,), target=7.0),
    "lora": Case("LoRA on all layers", "sst2", 800, (LORA,), target=1.5, others=("adapterhub",)),
    "lora-top": Case("LoRA in the top third, three epochs", "sst2", 800, (LORA_TOP,), target=2.2),
    "hybrid": Case("the founding hybrid, whole run", "sst2", 2000, HYBRID, target=1.7),
    "write": Case(
        "generation, SmolLM2 packed, full",
        "alpaca",
        100,
        (Stage("full", 1, 1e-4),),
        model="smollm",
        num_layers=30,
        batch=8,
        max_length=512,
        target=1.5,
    ),
    "joint": Case("joint `update` (against full fine-tuning)", "sst2", 800, (Stage("joint", 2, 3e-4),)),
    "banking-full": Case("full fine-tuning", "banking77", 1500, (FULL,), others=("defaults",)),
    "banking-top": Case("last 2 of 6 layers, three epochs", "banking77", 1500, (TOP,)),
    "full-12": Case(
        "full fine-tuning, 12 layers",
        "zh_reviews",
        400,
        (Stage("full", 1, 3e-4),),
        model="e5",
        num_layers=12,
        max_length=128,
    ),
    "write-lora": Case(
        "generation, SmolLM2 packed, LoRA on all layers",
        "alpaca",
        100,
        (Stage("lora", 1, 1e-3),),
        model="smollm",
        num_layers=30,
        batch=8,
        max_length=512,
    ),
}


def recipe_for(case: Case) -> dict[str, Any]:
    """Write a case as a recipe of this project."""
    stages = [_stage(stage, number, case) for number, stage in enumerate(case.stages)]
    task = {"generation": {"generate": 0}} if case.is_writing else "classification"
    metric = {"metric": "loss"} if case.is_writing else {}
    return {"task": task, "batch": case.batch, "max_length": case.max_length, **metric, "stages": stages}


def _stage(stage: Stage, number: int, case: Case) -> dict[str, Any]:
    top = f"layers[-{case.top}:]"
    lora = {"rank": RANK, "alpha": ALPHA}
    head = "" if case.is_writing else " | head"
    words: dict[Method, dict[str, Any]] = {
        "full": {"train": "all"},
        "top": {"train": f"{top} | head"},
        "head": {"train": "head"},
        "lora": {"attach": {"lora": lora | {"on": "attention | mlp"}}, "train": f"adapter{head}"},
        "lora-top": {"attach": {"lora": lora | {"on": f"{top} & (attention | mlp)"}}, "train": f"adapter{head}"},
        "joint": {
            "attach": {"lora": lora | {"on": f"{top} & (attention | mlp)"}},
            "train": "all | adapter",
            "joint": {"mode": "update", "full": 0.3, "partial": 0.7, "adapter": 1, "of": top},
        },
    }
    return {
        "name": f"{stage.method}-{number + 1}",
        **words[stage.method],
        "rate": stage.rate,
        "warmup": WARMUP,
        "until": {"epochs": stage.epochs},
        "keep": "last",  # as the Trainer does
    }
