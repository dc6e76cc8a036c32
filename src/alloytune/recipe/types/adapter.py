"""The part of a recipe that adds adapters."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from alloytune.recipe.types.values import Part, SelectionText


class Lora(Part):
    """Low-rank adapters beside linear layers (Hu et al. 2021), through PEFT."""

    rank: int = Field(8, ge=1, description="Rank of the two factors.")
    alpha: float | None = Field(None, gt=0, description="Scale: alpha / rank. Twice the rank where absent.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank), for large ranks (Kalajdzievski 2023).")
    dora: bool = Field(False, description="Learn the length of every column beside its direction (Liu et al. 2024).")
    pissa: bool = Field(
        False,
        description=(
            "Start from the largest singular values, which are taken out of the base weights (Meng et al. 2024)."
        ),
    )
    plus: float | None = Field(
        None,
        gt=0,
        description="The second factor's rate is so many times the first's; 16 in LoRA+ (Hayou et al. 2024).",
    )
    on: SelectionText = Field(
        "attention | mlp", description="The linear layers that get an adapter; the head never does."
    )


class Adalora(Part):
    """Low-rank adapters whose ranks are cut where they matter least (AdaLoRA, Zhang et al. 2023), through PEFT.

    Each layer begins at rank `start`. In the stage that attaches it, between a tenth and half of the way, the weakest
    directions of all layers together are cut until `rank` is left on average; what is cut stays cut.
    """

    rank: int = Field(8, ge=1, description="Average rank that is left.")
    start: int = Field(12, ge=1, description="Rank of every layer at first.")
    alpha: float | None = Field(None, gt=0, description="Scale: alpha / start. Twice the start where absent.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    orthogonal: float = Field(0.5, ge=0, description="Weight of the penalty that keeps the factors orthogonal.")
    on: SelectionText = Field("attention | mlp", description="The linear layers that get an adapter.")


class Vera(Part):
    """Two trained vectors around random matrices that all layers share (Kopiczko et al. 2024), through PEFT."""

    rank: int = Field(256, ge=1, description="Rank of the random matrices.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    on: SelectionText = Field("attention | mlp", description="The linear layers that get an adapter.")


class Ia3(Part):
    """One trained factor for each output of a layer, or each input of `mlp.down` (Liu et al. 2022), through PEFT."""

    on: SelectionText = Field(
        "attention.key | attention.value | mlp.down", description="The linear layers that get an adapter."
    )


class Oft(Part):
    """Trained rotations of a layer's inputs (Qiu et al. 2023), through PEFT."""

    block: int = Field(32, ge=2, description="Inputs that are rotated together; must divide the inputs of every layer.")
    on: SelectionText = Field("attention | mlp", description="The linear layers that get an adapter.")


class Shira(Part):
    """A random choice of single elements of the weights (Bhardwaj et al. 2024), through PEFT."""

    rank: int = Field(8, ge=1, description="As many elements move as LoRA of this rank would train.")
    on: SelectionText = Field("attention | mlp", description="The linear layers that get an adapter.")


class Bottleneck(Part):
    """Small two-layer networks behind output projections.

    On `attention | mlp` they stand where Houlsby et al. 2019 put them, on `mlp` alone where Pfeiffer et al. 2021 do.
    """

    reduction: int = Field(16, ge=1, description="Width of the layer divided by the width of the bottleneck.")
    activation: str = Field("relu", description="Nonlinearity between the two layers, by transformers' name.")
    placement: Literal["sequential", "parallel"] = Field(
        "sequential", description="On the layer's output, or beside the layer on its input (He et al. 2022)."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    gate: bool = Field(False, description="Multiply what it adds with a learned number from 0 to 1, 1/2 at first.")
    on: SelectionText = Field("attention | mlp", description="Blocks whose output projection gets an adapter.")


class Prefix(Part):
    """Learned keys and values that every position attends to before the text (Li and Liang 2021)."""

    length: int = Field(10, ge=1, description="Keys and values in every attention.")
    gate: bool = Field(False, description="Multiply them with a learned number from 0 to 1, 1/2 at first.")
    on: SelectionText = Field("attention", description="The attentions that get prefixes.")


class Attach(Part):
    """An adapter that a stage adds: exactly one kind."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"lora": "{rank: 8}"}]})

    lora: Lora | None = Field(None, description="LoRA, with rsLoRA, DoRA, PiSSA and LoRA+.")
    adalora: Adalora | None = Field(None, description="AdaLoRA: ranks that fall where they matter least.")
    vera: Vera | None = Field(None, description="VeRA; beside no other adapter.")
    ia3: Ia3 | None = Field(None, description="(IA)3.")
    oft: Oft | None = Field(None, description="OFT; not on GPT-2's transposed layers.")
    shira: Shira | None = Field(None, description="SHiRA; not on GPT-2's transposed layers.")
    bottleneck: Bottleneck | None = Field(None, description="Bottleneck adapters; they cannot be merged.")
    prefix: Prefix | None = Field(
        None,
        description="Prefix tuning; it cannot be merged, and some architectures compute attention without it.",
    )
    folder: str | None = Field(
        None,
        description=(
            "Folder of an adapter that was trained elsewhere, as PEFT saves it; kind, rank and layers come from there, "
            "a head does not."
        ),
    )
    name: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9_]*$",
        description="What `adapter.NAME`, `merge` and `drop` call it; the kind where absent.",
        json_schema_extra={"format": "name"},
    )
    stack: bool = Field(False, description="Whether it may stand on layers that carry another adapter.")

    @property
    def kinds(self) -> list[str]:
        """Give the kinds that are named; one, when the recipe is sound."""
        return [kind for kind in KINDS if getattr(self, kind) is not None]

    @property
    def called(self) -> str:
        """Give the adapter's name."""
        return self.name or self.kinds[0]

    @property
    def mergeable(self) -> bool:
        """Tell whether it can be folded into the base weights; of a folder only the folder tells."""
        return self.bottleneck is None and self.prefix is None

    @property
    def on(self) -> str:
        """Give the selection that it goes on; "all" where its folder says on what."""
        return getattr(getattr(self, self.kinds[0]), "on", "all")

    @model_serializer(mode="wrap")
    def _without_other_kinds(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in written(self).items() if value is not None}


KINDS = ("lora", "adalora", "vera", "ia3", "oft", "shira", "bottleneck", "prefix", "folder")
