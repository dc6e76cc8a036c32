"""Alloytune: fine-tune pretrained language models with full, partial and adapter stages in one run.

`tune` fine-tunes and gives a `Tuned`; `load` gives the `Tuned` of an earlier run; `Recipe` and `Stage` build a recipe
in code. What is heavy is imported when it is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alloytune.api import tune
    from alloytune.errors import AlloytuneError, InputError, NotFiniteError, RecipeError
    from alloytune.recipe.types.recipe import Recipe
    from alloytune.recipe.types.stage import Stage
    from alloytune.use import Tuned
    from alloytune.use import load_tuned as load

__version__ = "0.1.0"
__all__ = ["AlloytuneError", "InputError", "NotFiniteError", "Recipe", "RecipeError", "Stage", "Tuned", "load", "tune"]

# How long torch's threads wait for one another with their cores kept busy, on Linux; read when torch is first imported.
# At libgomp's own 300,000, training beside any other busy process is many times slower (docs/decisions.md).
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

_HOMES = {
    "AlloytuneError": "errors.AlloytuneError",
    "InputError": "errors.InputError",
    "NotFiniteError": "errors.NotFiniteError",
    "Recipe": "recipe.types.recipe.Recipe",
    "RecipeError": "errors.RecipeError",
    "Stage": "recipe.types.stage.Stage",
    "Tuned": "use.Tuned",
    "load": "use.load_tuned",
    "tune": "api.tune",
}
_MODULES = ("watch",)  # of what is called by them, as in `alloytune.watch.Watcher`


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"alloytune.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'alloytune' has no attribute {name!r}")
    module, attribute = _HOMES[name].rsplit(".", 1)
    return getattr(import_module(f"alloytune.{module}"), attribute)
