"""The shape of the code: arrows one way, no torch where help is answered, public names in order."""

import ast
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

import alloytune

SOURCE = Path(alloytune.__file__).parent

# what each part may import of the others; design: cli -> run -> build -> parts -> errors
ARROWS = {
    "errors": set(),
    "expression": set(),
    "metrics": set(),
    "selected": set(),
    "trying": set(),
    "selection": {"errors", "expression", "selected"},
    "record": {"errors"},
    "recipe": {"errors", "expression", "metrics"},
    "report": {"errors", "metrics", "record"},
    "data": {"errors"},
    "machine": {"errors", "record"},
    "models": {"errors", "record", "trying"},
    "tasks": {"data", "errors", "metrics", "trying"},
    "learning": {"data", "errors", "tasks"},
    "evaluate": {"errors", "machine", "metrics", "tasks", "trying"},
    "train": {"errors", "machine", "metrics", "models", "record", "selected", "tasks", "trying"},
    "watch": {"record"},
    "terminal": {"metrics", "record", "report", "train", "watch"},
    "rates": set(),
    "build": {
        "data",
        "errors",
        "evaluate",
        "expression",
        "learning",
        "machine",
        "models",
        "rates",
        "recipe",
        "selected",
        "selection",
        "tasks",
        "train",
        "trying",
    },
    "stages": {
        "build",
        "errors",
        "evaluate",
        "expression",
        "learning",
        "metrics",
        "models",
        "recipe",
        "record",
        "selected",
        "selection",
        "tasks",
        "train",
        "watch",
    },
}
ANYTHING_BELOW = {
    "api",
    "cli",
    "demo",
    "estimate",
    "finish",
    "run",
    "talk",
    "use",
    "__init__",
    "__main__",
}
NEVER_IMPORTED = {"api", "cli", "demo"}  # but by the command line, and `api` by the package itself


def imports(file: Path) -> set[str]:
    """Give the parts of the package that a file imports when it runs; what is for types alone does not count."""
    found: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "alloytune":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names} - {"__version__"}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("alloytune.")}
    return found


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_arrows_go_one_way(file: Path) -> None:
    part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    used = imports(file) - {part}
    if part in ARROWS:
        assert used <= ARROWS[part]
    else:
        assert part in ANYTHING_BELOW
        assert part in ("cli", "__main__") or not used & NEVER_IMPORTED


@pytest.mark.parametrize(
    "part", ["cli.main", "recipe.read", "recipe.shipped", "record.folder", "report.tables", "errors"]
)
def test_torch_stays_out(part: str) -> None:
    code = f"import sys, alloytune.{part}; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_answers_at_once() -> None:
    spans = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "alloytune", "--help"], capture_output=True, check=True)
        spans.append(time.perf_counter() - began)
    assert b"train" in done.stdout
    assert min(spans) < 0.5


def test_the_version_is_that_of_the_installed_package() -> None:
    done = subprocess.run([sys.executable, "-m", "alloytune", "--version"], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["alloytune", version("alloytune")] == ["alloytune", alloytune.__version__]


def test_public_names_are_sorted_and_there() -> None:
    assert alloytune.__all__ == sorted(alloytune.__all__)
    for name in alloytune.__all__:
        assert getattr(alloytune, name) is not None


def test_sub_packages_export_nothing() -> None:
    assert not [file for file in SOURCE.glob("*/__init__.py") if file.read_text(encoding="utf-8").strip()]


@pytest.mark.parametrize("own", [None, "7"])
def test_how_long_threads_wait_is_said_before_torch_is_imported(own: str | None) -> None:
    """Where it is, that is read no more."""
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    environment |= {} if own is None else {"GOMP_SPINCOUNT": own}
    script = "import sys, os, alloytune; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True, text=True)
    assert done.stdout.split() == [own or "4000", "False"]
