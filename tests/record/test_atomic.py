"""Writing leaves the whole new thing or the old one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alloytune.errors import SaveError
from alloytune.record.atomic import new_folder, write_json
from alloytune.record.folder import StageFolder
from full_disk import full_disk


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_json(file, {"whole": True})
    with full_disk(), pytest.raises(SaveError, match=r"results\.json: cannot be saved .* make room"):
        write_json(file, {"text": "x" * 10_000})
    assert file.read_text() == '{\n  "whole": true\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with new_folder(folder) as aside:
        (aside / "a").write_text("old")
    with full_disk(), pytest.raises(SaveError), new_folder(folder) as aside:
        save_file({"weight": torch.zeros(10_000)}, aside / "model.safetensors")
    assert (folder / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_takes_the_old_ones_place(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_folder(tmp_path / "model") as aside:
            (aside / content).write_text(content)
    assert [entry.name for entry in (tmp_path / "model").iterdir()] == ["new"]


def test_lines_cut_short_by_a_kill_are_left_out(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "01-full")
    for update in range(1, 4):
        stage.append("steps", {"attempt": 0, "update": update})
    with (stage.path / "steps.jsonl").open("a") as stream:
        stream.write('{"attempt": 0, "upd')
    assert [row["update"] for row in stage.rows("steps")] == [1, 2, 3]
    stage.forget_after(0, 2)
    assert [row["update"] for row in stage.rows("steps")] == [1, 2]
