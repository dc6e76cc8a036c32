"""Writing leaves the whole new thing or the old one."""

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alloytune.errors import InputError, SaveError
from alloytune.record.atomic import new_folder, write_json
from alloytune.record.folder import StageFolder, default_output
from full_disk import full_disk


def fill(folder: Path, content: str) -> None:
    """Make a folder anew, with one file."""
    with new_folder(folder) as aside:
        (aside / "a").write_text(content)


def kill_at_second_rename(folder: Path) -> None:
    """Make a folder anew in a process that dies when the old one has gone and the new one has not come."""
    code = (
        "import os, sys; from pathlib import Path; from alloytune.record.atomic import new_folder\n"
        "target = Path(sys.argv[1])\n"
        "sys.addaudithook(lambda event, _: event == 'os.rename' and not target.exists() and os._exit(9))\n"
        "with new_folder(target) as aside: (aside / 'a').write_text('lost')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 9


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


def test_of_two_runs_with_one_output_the_first_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    faster = (
        "import sys; from pathlib import Path; from alloytune.record.atomic import new_folder\n"
        "with new_folder(Path(sys.argv[1]), replaces=False) as aside: (aside / 'a').write_text('first')"
    )

    def slower() -> None:
        with new_folder(run, replaces=False) as aside:
            (aside / "a").write_text("second")
            subprocess.run([sys.executable, "-c", faster, str(run)], check=True)
            assert (aside / "a").read_text() == "second"

    with pytest.raises(InputError, match=r"output: .*exists and is not empty"):
        slower()
    assert (run / "a").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_new_folder_may_be_named_by_dots_or_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("work", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "work")
    for named, folder in (("../other/.", "other"), ("../link", "real"), ("../new/../next", "next")):
        fill(Path(named), named)
        assert (tmp_path / folder / "a").read_text() == named
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "next", "other", "real", "work"]


def test_runs_of_one_minute_have_names_of_their_own() -> None:
    times = (datetime(2026, 11, 23, 15, 42, second) for second in (7, 8))
    assert len({default_output("tweets.csv", time) for time in times}) == 2


@pytest.mark.parametrize("next_one_fails", [True, False])
def test_a_kill_between_the_renames_loses_no_folder(tmp_path: Path, next_one_fails: bool) -> None:
    folder = tmp_path / "model"
    fill(folder, "old")
    kill_at_second_rename(folder)
    assert not folder.exists()
    if next_one_fails:
        with full_disk(), pytest.raises(SaveError):
            fill(folder, "x" * 10_000)
    else:
        fill(folder, "new")
    assert (folder / "a").read_text() == ("old" if next_one_fails else "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_tidying_puts_back_what_a_kill_left_aside(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path)
    fill(stage.checkpoint, "old")
    kill_at_second_rename(stage.checkpoint)
    stage.tidy()
    assert (stage.checkpoint / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
    fill(tmp_path / ".checkpoint.old", "older")
    stage.tidy()
    assert (stage.checkpoint / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_lines_cut_short_by_a_kill_are_left_out(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "01-full")
    for update in range(1, 4):
        stage.append("steps", {"attempt": 0, "update": update})
    with (stage.path / "steps.jsonl").open("a") as stream:
        stream.write('{"attempt": 0, "upd')
    assert [row["update"] for row in stage.rows("steps")] == [1, 2, 3]
    stage.forget_after(0, 2)
    assert [row["update"] for row in stage.rows("steps")] == [1, 2]
