"""One torch thread and no hub, for every test; tiny models for those that ask.

Fixtures import what they need: the process that hands out the tests would load torch and transformers for nothing.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ALLOYTUNE_RECIPES"] = ""  # none of the user's own

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from alloytune.models.state import ModelState


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    from alloytune.models.load import quiet

    torch.set_num_threads(1)
    quiet()


@pytest.fixture(autouse=True)
def _reload_by_forking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the imports of a new interpreter, but where a test is about that or runs the real model."""
    from alloytune.models import verify
    from forking import forked_process

    if not {"new_interpreter", "slow"} & {mark.name for mark in request.node.iter_markers()}:
        monkeypatch.setattr(verify, "fresh_process", forked_process)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def state(bert: Path) -> "ModelState":
    """Give a tiny BERT with a head for two labels."""
    import tiny
    from alloytune.models.load import load_model, load_tokenizer
    from alloytune.models.state import ModelState

    task = tiny.TASK
    model, fresh = load_model(task.auto_class, str(bert), load_tokenizer(str(bert)), 0, **task.config)
    return ModelState(model, fresh)
