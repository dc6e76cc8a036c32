"""The arguments and options of the commands, each written once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Precision(StrEnum):
    """The type in which matrix products are computed."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    auto = "auto"


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped recipe's name.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id, folder, GGUF file, or package:NAME/PATH inside a package.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Training table: CSV, TSV, JSONL, JSON, Parquet, CoNLL or plain text.")
]
ValidationOption = Annotated[str | None, typer.Option("--validation", help="Validation table; else cut from --data.")]
TestOption = Annotated[str | None, typer.Option("--test", help="Test table; else cut from --data.")]
TextOption = Annotated[str | None, typer.Option("--text", help="Column with the text.")]
PairOption = Annotated[str | None, typer.Option("--text-pair", help="Column with a second text.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="Column with the label.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as stages.0.rate=1e-5.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the whole run.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run folder to make; runs/NAME-DATE where absent.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
PlaceArgument = Annotated[
    str,
    typer.Argument(metavar="RUN|MODEL", help="The folder of a finished run, or a model: hub id, folder, GGUF file."),
]
_OWN = "where it is not called as in training."
OwnTextOption = Annotated[str | None, typer.Option("--text", help=f"Column with the text, {_OWN}")]
OwnPairOption = Annotated[str | None, typer.Option("--text-pair", help=f"Column with a second text, {_OWN}")]
OwnLabelOption = Annotated[str | None, typer.Option("--label", help=f"Column with the label, {_OWN}")]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="KEY=NAME", help="Another column that the run reads, such as tokens=words."),
]
NewTokensOption = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer at most; the run's own, or 256.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0.0, help="Above 0 words are drawn; 0 takes the likeliest.")
]
DrawOption = Annotated[int, typer.Option("--seed", help="Seed of the words that are drawn.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="Of products; float32 as the run was tested, or auto for what is fastest here."),
]
EncodingOption = Annotated[str, typer.Option("--encoding", help="Encoding of the table.")]
