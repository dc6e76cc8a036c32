"""Write the reference page of recipes from the descriptions of their types."""

import json
from typing import Any

from alloytune.recipe import shape
from alloytune.recipe.shipped import shipped_names, shipped_summary
from alloytune.selection import PARTS, SIDES, WORDS

# What the `Type` column says, by the `format` of a key.
KINDS = {
    "selection": "[selection](#selections)",
    "rate": "number above 0",
    "share": "share: 0.1 or 10%",
    "interval": "[interval](#intervals)",
    "cadence": "[interval](#intervals)",
    "word": "short word",
}

START = """\
# Recipes

A recipe is a YAML 1.2 file: `2e-5` is a number and `no` is a word. It is checked strictly and as a whole: every unknown
key, wrong type and impossible combination is reported at once, with its line and what was probably meant.

<!-- Written by `python -m alloytune.recipe.schema`; change the descriptions in the types instead. -->
"""

SELECTIONS = """\
## Selections

A selection says which weights are meant, in roles that are the same for every architecture:

| write | for |
|---|---|
| {roles} | a role |
| {parts} | a part of a role |
| {sides} before a role, such as `encoder.layers[-2:]` | one side of a model that has two |
| `layers[0]`, `layers[-2:]`, `layers[:6:2]` | some layers, counted from the input as in Python |
| `name("*.pooler.*")` | parameters whose name matches a shell pattern |
| `a \\| b`, `a & b`, `a - b`, `( )` | either, both, the first without the second |

Roles join with `&`: `layers[-2:] & norm`. A selection that matches nothing in the model is an error that lists the
roles there are. Inside `{{...}}` a selection with a square bracket or a comma needs quotes around it, as YAML has it:
`{{lora: {{on: "layers[-2:] & attention"}}}}`.
"""

OTHERWISE = """\
## `accept` and `otherwise`

A stage with `accept` is kept only if its score gained enough on the model before it. `otherwise` says what happens to
one that did not; it needs `accept` beside it.

| `otherwise` | what happens |
|---|---|
{rows}
| `{{retry: {{factor: 0.3, times: 1}}}}` | retry with numbers of your own |

An adapter goes with the stage that attached it: a later stage that trains `adapter` attaches its own, or the earlier
one is kept for sure.
"""

INTERVALS = """\
## Intervals

A number and a unit: `1 epoch`, `0.5 epochs`, `200 updates`. Updates are whole numbers. How often a running stage is
saved may be in `minutes` as well, as it does not change the result.
"""

SHIPPED = "## Shipped recipes\n\n| name | what it does |\n|---|---|\n"


def reference() -> str:
    """Give the whole page."""
    made = shape.schema()
    tables = [_table("The recipe", made)]
    tables += [_table(_heading(name), made["$defs"][name]) for name in _parts(made)]
    shipped = SHIPPED + "".join(f"| `{name}` | {shipped_summary(name)} |\n" for name in shipped_names())
    return "\n".join([START, *tables, _selections(), _otherwise(made), INTERVALS, shipped])


def _parts(node: shape.Node) -> list[str]:
    """List the parts below a part, each followed by its own."""
    found: list[str] = []
    for child in node["properties"].values():
        for name in _references(child):
            found += [name, *_parts(shape.schema()["$defs"][name])]
    return found


def _references(node: Any) -> list[str]:
    if not isinstance(node, dict):
        return []
    here = [node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else []
    below = [node.get("items"), *node.get("anyOf", ())]
    return here + [name for child in below for name in _references(child)]


def _heading(name: str) -> str:
    """Name a part by the key that holds it, such as `data.split`."""
    key = name.lower()
    homes = shape.homes()
    if key in homes:
        path = [str(part) for part in (*homes[key][0], key) if part not in ("stages", "[]")]
        return f"`{'.'.join(path)}`"
    return {"Stage": "A stage"}[name]


def _table(heading: str, part: shape.Node) -> str:
    lines = [f"## {heading}", "", part["description"], "", "| key | type | default | meaning |", "|---|---|---|---|"]
    required = part.get("required", ())
    for key, node in part["properties"].items():
        default = "required" if key in required else _default(node)
        meaning = node["description"].replace("|", "\\|")
        for phrase in shape.FORMATS.values():
            meaning = meaning.removesuffix(f" Takes {phrase}.")
        lines.append(f"| `{key}` | {_kind(node)} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def _default(node: shape.Node) -> str:
    """Write a default as it would stand in a recipe; a mapping's defaults stand in its own table, unless it is one."""
    value = node["default"]
    if isinstance(value, dict):
        given = [f"{key}: {item:g}" for key, item in value.items() if isinstance(item, float)]
        return f"`{{{given[0]}}}`" if len(given) == 1 else ""
    text = value if isinstance(value, str) else json.dumps(value)
    return "" if value is None else f"`{text}`".replace("|", "\\|")


def _kind(node: shape.Node) -> str:
    return " or ".join(dict.fromkeys(_kind_of(option) for option in shape.options(node)))


def _kind_of(node: shape.Node) -> str:
    if "format" in node:
        return KINDS[node["format"]]
    if "enum" in node or "const" in node:
        return ", ".join(f"`{word}`" for word in node.get("enum", [node.get("const")]))
    match node["type"]:
        case "object" if "properties" in node:
            return _anchor(node["title"])
        case "object":
            return "mapping of [selections](#selections) to rates"
        case "array":
            return "list of [stages](#a-stage)"
    names = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text"}
    return names[node["type"]] + shape.bounds(node)


def _anchor(name: str) -> str:
    anchor = "".join(letter for letter in _heading(name).lower() if letter.isalnum() or letter in "_-")
    return f"[mapping](#{anchor})"


def _selections() -> str:
    code = "`{}`".format
    parts = [f"{role}.{part}" for role, words in PARTS.items() for part in words]
    roles = [word for word in WORDS if word not in SIDES]
    return SELECTIONS.format(
        roles=", ".join(map(code, roles)), parts=", ".join(map(code, parts)), sides=", ".join(map(code, SIDES))
    )


def _otherwise(made: shape.Node) -> str:
    """Split the description of `otherwise` into one row for each word."""
    text: str = made["$defs"]["Stage"]["properties"]["otherwise"]["description"].split("`accept`. ", 1)[1]
    rows = []
    for sentence in text.split(". "):
        word, _, meaning = sentence.partition(": ")
        rows.append(f"| `{word}` | {meaning.removesuffix('.')} |")
    return OTHERWISE.format(rows="\n".join(rows))
