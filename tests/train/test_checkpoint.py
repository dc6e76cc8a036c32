"""Checkpoints: whole, or known not to be."""

from pathlib import Path

import pytest
import torch

from alloytune.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    tensors = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"a|step": torch.tensor(3.0)}}
    save_checkpoint(folder, Checkpoint(tensors, {"update": 7}))
    return folder


def test_comes_back_as_it_was(saved: Path) -> None:
    checkpoint = load_checkpoint(saved)
    assert checkpoint is not None
    assert checkpoint.state == {"update": 7}
    assert torch.equal(checkpoint.tensors["weights"]["a"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(checkpoint.tensors["optimizer"]["a|step"], torch.tensor(3.0))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["absent", "cut", "altered"])
def test_damage_is_recognised(saved: Path, name: str, damage: str) -> None:
    file = saved / name
    content = file.read_bytes()
    match damage:
        case "absent":
            file.unlink()
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "altered":
            file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert load_checkpoint(saved) is None


def test_a_folder_written_aside_is_no_checkpoint(saved: Path) -> None:
    saved.rename(saved.with_name(".checkpoint.partial"))
    assert load_checkpoint(saved) is None


def test_no_pickle_is_written(saved: Path) -> None:
    assert {file.suffix for file in saved.iterdir()} == {".safetensors", ".json"}
