"""Bad input: one clear line, exit code 2, no traceback, nothing lost."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import tiny
from flows.test_commands import Command, command, place

__all__ = ["command", "place"]  # fixtures

TABLE = tiny.make_table(60)


def spoil(place: Path, kind: str) -> None:
    """Write a table.csv with something wrong."""
    match kind:
        case "missing file":
            (place / "table.csv").unlink()
        case "missing column":
            TABLE.rename({"label": "mood"}).write_csv(place / "table.csv")
        case "single class":
            TABLE.filter(pl.col("label") == "good").write_csv(place / "table.csv")
        case "class with one row":
            extra = pl.DataFrame({"text": ["so so"], "label": ["middling"]})
            pl.concat([TABLE, extra]).write_csv(place / "table.csv")
        case "empty text everywhere":
            TABLE.with_columns(pl.lit(" ").alias("text")).write_csv(place / "table.csv")
        case "wrong encoding":
            (place / "table.csv").write_bytes("text,label\ncaf\xe9 was good,good\nbad caf\xe9,bad\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing file", ["table.csv"]),
        ("missing column", ["label", "mood"]),
        ("single class", ["good"]),
        ("class with one row", ["middling"]),
        ("empty text everywhere", ["text"]),
        ("wrong encoding", ["table.csv", "--set data.encoding=cp1252"]),
    ],
)
def test_a_bad_table(command: Command, place: Path, kind: str, words: list[str]) -> None:
    spoil(place, kind)
    answer = command("train", "recipe.yaml", "--output", "run")
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    for word in words:
        assert word in answer.err
    assert not (place / "run").exists()


@pytest.mark.new_interpreter
def test_what_is_not_there_is_refused_before_torch_is_loaded(place: Path) -> None:
    code = """
import sys
from alloytune.cli.main import main
for words in (
    ("train", "recipe.yaml", "--data", "missing.csv"),
    ("train", "recipe.yaml", "--output", "."),
    ("train", "--resume", "no run"),
    ("check", "recipe.yaml", "--test", "missing.csv"),
    ("predict", "no run", "table.csv"),
):
    sys.argv = ["alloytune", *words]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 2, words
    assert "torch" not in sys.modules and "transformers" not in sys.modules, words
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr.count("\n")) == (0, 5), answer.stderr


def test_labels_in_test_that_training_never_saw(command: Command, place: Path) -> None:
    TABLE.head(20).with_columns(pl.lit("strange").alias("label"), text=pl.col("text") + " plot").write_csv(
        place / "test.csv"
    )
    answer = command("train", "recipe.yaml", "--test", "test.csv")
    assert answer.code == 2
    assert "strange" in answer.err


def test_a_parquet_file_cut_short(command: Command, place: Path) -> None:
    TABLE.write_parquet(place / "table.parquet")
    content = (place / "table.parquet").read_bytes()
    (place / "table.parquet").write_bytes(content[: len(content) // 2])
    answer = command("train", "recipe.yaml", "--data", "table.parquet")
    assert answer.code == 2
    assert "table.parquet" in answer.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.0.train=layers[7:] | head", ["layers[7:]", "matches nothing", "layers[0:2]"]),
        ("stages.0.train=cross", ["'cross'", "matches nothing"]),
        ("stages.2.attach.lora.on=norm", ["no linear layer", "stages[2].attach"]),
        ("stages.0.rate=0", ["stages[0].rate", "0"]),
        ("stages.0.rate=.nan", ["stages[0].rate", "nan"]),
        ("stages.0.train=haed", ["haed", "head"]),
        ("model=no/such/folder", ["no/such/folder"]),
    ],
)
def test_a_bad_recipe(command: Command, place: Path, override: str, words: list[str]) -> None:
    answer = command("train", "recipe.yaml", "--set", override, "--output", "run")
    assert answer.code == 2, answer.out
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err
    assert not (place / "run").exists()


def test_an_output_folder_that_exists(command: Command, place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "precious.txt").write_text("keep me")
    answer = command("train", "recipe.yaml", "--output", "run")
    assert answer.code == 2
    assert "exists and is not empty" in answer.err
    assert (place / "run" / "precious.txt").read_text() == "keep me"


def test_the_working_directory_is_no_output(
    command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    answer = command("train", str(place / "recipe.yaml"), "--output", ".")
    assert answer.code == 2
    assert "output: '.' is the working directory; choose another --output" in answer.err
    assert list((tmp_path / "empty").iterdir()) == []


def test_show_and_resume_of_what_is_no_run(command: Command, place: Path) -> None:
    for words in (("show", "nowhere"), ("train", "--resume", "nowhere"), ("predict", "nowhere", "table.csv")):
        answer = command(*words)
        assert answer.code == 2
        assert "is no run folder" in answer.err


def test_debug_shows_the_traceback(command: Command, place: Path) -> None:
    with pytest.raises(Exception, match="nowhere"):
        command("show", "nowhere", "--debug")


def test_pickled_weights_are_refused(command: Command, place: Path, bert: Path) -> None:
    import shutil

    import torch

    folder = place / "pickled"
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    answer = command("train", "recipe.yaml", "--model", folder)
    assert answer.code == 2
    assert "pickled weights only" in answer.err
