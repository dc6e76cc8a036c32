"""Pooling: padding has no part in it, and the files of sentence-transformers say the same before and after."""

import json
from pathlib import Path

import pytest
import torch

from alloytune.errors import InputError
from alloytune.tasks.pooling import Pooling, read_pooling, write_sentence_files

STATES = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [5.0, 5.0]], [[2.0, 1.0], [1.0, 2.0], [4.0, 0.0]]])


@pytest.mark.parametrize(
    ("how", "first"), [("mean", [0.5, 1.5]), ("cls", [1.0, 0.0]), ("last", [0.0, 3.0]), ("max", [1.0, 3.0])]
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_has_no_part_in_a_vector(how: str, first: list[float], side: str) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    states = STATES.clone()
    if side == "left":
        mask[0], states[0] = mask[0].flip(0), states[0].roll(1, dims=0)
    pooled = Pooling(how)(states, mask)  # type: ignore[arg-type]
    expected = torch.tensor(first)
    torch.testing.assert_close(pooled[0], expected / expected.norm())
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("how", ["mean", "cls", "last", "max"])
def test_vectors_are_float32_under_autocast(how: str) -> None:
    torch.manual_seed(0)
    states, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooling = Pooling(how)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooling(states, mask)
    assert torch.equal(pooled, pooling(states, mask))


@pytest.mark.parametrize("how", ["mean", "cls", "last", "max"])
def test_what_is_written_is_read_again(tmp_path: Path, how: str) -> None:
    write_sentence_files(tmp_path, Pooling(how), 16, 128, {"query": "query: "})  # type: ignore[arg-type]
    assert read_pooling(str(tmp_path)) == Pooling(how)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "config_sentence_transformers.json").read_text())["prompts"] == {"query": "query: "}


def test_a_plain_folder_says_nothing(tmp_path: Path) -> None:
    assert read_pooling(str(tmp_path)) is None


def test_the_newer_form_names_the_pooling(tmp_path: Path) -> None:
    write_sentence_files(tmp_path, Pooling("mean"), 16, None, {})
    (tmp_path / "1_Pooling/config.json").write_text('{"embedding_dimension": 16, "pooling_mode": "lasttoken"}')
    assert read_pooling(str(tmp_path)) == Pooling("last")


@pytest.mark.parametrize("wrong", ["dense", "weighted", "no pooling", "no json"])
def test_what_is_not_done_here_is_refused(tmp_path: Path, wrong: str) -> None:
    write_sentence_files(tmp_path, Pooling("mean"), 16, None, {})
    modules = json.loads((tmp_path / "modules.json").read_text())
    if wrong == "dense":
        modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    elif wrong == "no pooling":
        modules = modules[:1]
    elif wrong == "weighted":
        config = {"pooling_mode_mean_tokens": False, "pooling_mode_weightedmean_tokens": True}
        (tmp_path / "1_Pooling/config.json").write_text(json.dumps(config))
    (tmp_path / "modules.json").write_text(json.dumps(modules) if wrong != "no json" else "[")
    with pytest.raises(InputError, match="modules"):
        read_pooling(str(tmp_path))
