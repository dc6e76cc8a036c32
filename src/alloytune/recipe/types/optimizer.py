"""The part of a stage that says what makes updates out of gradients."""

from typing import Any, Literal

from pydantic import Field

from alloytune.recipe.types.values import Part


class Adamw(Part):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    beta1: float = Field(0.9, ge=0, lt=1, description="What an update keeps of the gradients' average.")
    beta2: float = Field(0.999, ge=0, lt=1, description="What an update keeps of the squared gradients' average.")
    bits: Literal[32, 8] = Field(32, description="Bits per number of its memory; 8 through bitsandbytes.")


class Sgd(Part):
    """Stochastic gradient descent; wants rates about a hundred times AdamW's. Its decay is part of the gradient."""

    momentum: float = Field(0.9, ge=0, lt=1, description="What an update keeps of the one before.")
    nesterov: bool = Field(False, description="Look ahead along the momentum.")


class Adafactor(Part):
    """Adam whose memory is a row and a column (Shazeer and Stern 2018); the rate is relative to a weight's size."""

    beta2_decay: float = Field(-0.8, le=0, description="Power of the update's number by which old gradients fade.")


class Lion(Part):
    """Signs of the momentum (Chen et al. 2023); wants a third to a tenth of AdamW's rate."""

    beta1: float = Field(0.9, ge=0, lt=1, description="Weight of the momentum against the gradient in an update.")
    beta2: float = Field(0.99, ge=0, lt=1, description="What the momentum keeps of itself.")
    bits: Literal[32, 8] = Field(32, description="Bits per number of its memory; 8 through bitsandbytes.")


class Muon(Part):
    """Orthogonal updates of matrices inside the body, sized as AdamW's (Jordan et al. 2024); AdamW for the rest."""

    momentum: float = Field(0.95, ge=0, lt=1, description="What an update keeps of the one before.")
    nesterov: bool = Field(True, description="Look ahead along the momentum.")


class Galore(Part):
    """Adam within the gradient's largest directions (Zhao et al. 2024), for matrices inside; AdamW for the rest."""

    rank: int = Field(128, ge=1, description="Directions kept; matrices that have no more get AdamW.")
    every: int = Field(200, ge=1, description="Updates from one choice of directions to the next.")
    scale: float = Field(0.25, gt=0, description="What the rate of these matrices is multiplied with.")


class Apollo(Part):
    """Gradients scaled by a small Adam's (Zhu et al. 2024), for matrices inside; AdamW for the rest."""

    rank: int = Field(128, ge=1, description="Size of the small Adam; matrices that have no more get AdamW.")
    every: int = Field(200, ge=1, description="Updates from one random projection to the next.")
    scale: float = Field(1.0, gt=0, description="The update is multiplied with its root.")
    per: Literal["channel", "tensor"] = Field("channel", description="What has a scaling of its own.")


class ScheduleFree(Part):
    """AdamW whose weights are averaged instead of its rate lowered (Defazio et al. 2024)."""

    beta1: float = Field(0.9, gt=0, lt=1, description="How near the average gradients are taken.")
    beta2: float = Field(0.999, ge=0, lt=1, description="What an update keeps of the squared gradients' average.")


class Optimizer(Part):
    """The long form of `optimizer`: exactly one, with its options."""

    adamw: Adamw | None = Field(None, description="AdamW.")
    sgd: Sgd | None = Field(None, description="SGD.")
    adafactor: Adafactor | None = Field(None, description="Adafactor.")
    lion: Lion | None = Field(None, description="Lion.")
    muon: Muon | None = Field(None, description="Muon.")
    galore: Galore | None = Field(None, description="GaLore.")
    apollo: Apollo | None = Field(None, description="APOLLO; needs the extra `optimizers`.")
    schedule_free: ScheduleFree | None = Field(None, description="Schedule-free AdamW.")


class Clip(Part):
    """The long form of `clip`."""

    norm: float = Field(gt=0, description="Largest gradient norm.")
    per: Literal["all", "group"] = Field(
        "all",
        description="One norm over all that moves, or one each for embeddings, layers, head, adapter and the rest.",
    )


OptimizerWord = Literal["adamw", "sgd", "adafactor", "lion", "muon", "galore", "apollo", "schedule_free"]


def read_optimizer(given: OptimizerWord | Optimizer) -> tuple[str, dict[str, Any]]:
    """Give an optimizer's name and all its options, from its word or its long form."""
    long = Optimizer.model_validate({given: {}}) if isinstance(given, str) else given
    ((kind, options),) = long.model_dump(exclude_none=True).items()
    return kind, options
