"""The shape of a recipe as a JSON schema, and what may stand at a path.

The schema comes from the types; error messages and the reference page are written from it, so the three agree.
"""

from functools import cache
from typing import Any

from alloytune.recipe.places import KeyPath
from alloytune.recipe.types.recipe import WrittenRecipe

Node = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

# What a key takes, by its `format` in the schema: in an error message, and in the schema's descriptions.
FORMATS = {
    "selection": "a selection such as 'layers[-2:] | head'",
    "rate": "a number above 0, such as 2e-4",
    "share": "a share from 0 to below 100%, such as 10% or 0.1",
    "interval": "an interval such as '1 epoch' or '200 updates'",
    "cadence": "an interval such as '5 minutes', '1 epoch' or '200 updates'",
    "gain": "a number such as 0.01, or standard errors such as '0.5 SE'",
    "threshold": "a threshold such as 'below 1e-3'",
    "multiplier": "a multiplier between 0 and 1, such as x0.3",
    "weight": "a number such as 0.3, a course such as '0 -> 1 cosine' or '1 until 40%, 0', or a word such as validate",
    "word": "a short word of small letters, digits, - and _",
    "name": "a name of small letters, digits and _",
    "metric": "a metric of the task, such as macro_f1",
    "metric values": "a mapping such as {macro_f1: 0.95}",
    "label weights": "a mapping from labels to numbers above 0",
}


@cache
def schema() -> Node:
    """Build the JSON schema of a recipe, with descriptions for editors."""
    made = WrittenRecipe.model_json_schema()
    for part in (made, *made["$defs"].values()):
        for node in part["properties"].values():
            node.pop("title", None)
            kinds = {option.get("format") for option in (node, *alternatives(node))} & set(FORMATS)
            node["description"] += "".join(f" Takes {FORMATS[kind]}." for kind in sorted(kinds))
    return {"$schema": DIALECT, **made, "title": "Alloytune recipe"}


def alternatives(node: Node) -> list[Node]:
    """Give what a node may be, where that is one of several."""
    return [*node.get("anyOf", ()), *node.get("oneOf", ())]


def options(node: Node) -> list[Node]:
    """Give the alternatives of a node, references followed and null left out."""
    if "$ref" in node:
        return options(schema()["$defs"][node["$ref"].rsplit("/", 1)[1]])
    if "format" not in node and alternatives(node):
        return [option for each in alternatives(node) for option in options(each)]
    return [] if node.get("type") == "null" else [node]


def at(path: KeyPath) -> list[Node]:
    """Give what may stand at a path; nothing where no such key is."""
    found = [schema()]
    for part in path:
        found = [option for node in found for option in _below(node, part)]
    return found


def keys(path: KeyPath) -> tuple[str, ...]:
    """List the keys that a mapping at a path may have; none where it takes any."""
    return tuple(key for node in at(path) for key in node.get("properties", ()))


def takes_any_key(path: KeyPath) -> bool:
    """Say whether the keys at a path are the user's own, as in `rates`."""
    return any("additionalProperties" in node and "properties" not in node for node in at(path))


def bounds(node: Node) -> str:
    """Say the limits of a number, as ` at least 0 and below 1`."""
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = " and ".join(f"{word} {node[key]:g}" for key, word in words.items() if key in node)
    return f" {limits}" if limits else ""


@cache
def homes() -> dict[str, list[KeyPath]]:
    """Give for every key the paths of the mappings that have it, nearest the top first; `[]` stands for an index."""
    found: dict[str, list[KeyPath]] = {}
    level: list[tuple[KeyPath, Node]] = [((), schema())]
    while level:
        below: list[tuple[KeyPath, Node]] = []
        for path, node in level:
            for key, child in node.get("properties", {}).items():
                found.setdefault(key, []).append(path)
                below += [((*path, key), option) for option in options(child)]
            if "items" in node and "repeat" not in path:  # a block's stages are stages
                below += [((*path, "[]"), option) for option in options(node["items"])]
        level = below
    return found


def _below(node: Node, part: str | int) -> list[Node]:
    if isinstance(part, int):
        return options(node["items"]) if "items" in node else []
    if part in node.get("properties", {}):
        return options(node["properties"][part])
    rest = node.get("additionalProperties")
    return options(rest) if isinstance(rest, dict) else []
