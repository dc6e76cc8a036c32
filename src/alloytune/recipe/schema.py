"""The recipe's JSON schema for editors and its reference page; `python -m alloytune.recipe.schema` rewrites both."""

import json
from pathlib import Path

from alloytune.recipe.catalogue import page
from alloytune.recipe.reference import reference
from alloytune.recipe.shape import schema

DOCS = Path(__file__).parents[3] / "docs"


def documents() -> dict[str, str]:
    """Give the name and content of every document that is made from the types."""
    return {
        "recipe.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
        "recipe-reference.md": reference(),
        "recipes.md": page(),
    }


def write(folder: Path = DOCS) -> None:
    """Write the documents into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in documents().items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    write()
