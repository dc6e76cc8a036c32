"""Write the reference page of recipes from the descriptions of their types."""

import json
import re
from typing import Any

from alloytune.expression import ELEMENT_SCORES, MATRIX_SCORES, PARTS, SCORES, SIDES, WORDS
from alloytune.metrics import METRICS
from alloytune.recipe import shape
from alloytune.recipe.tasks import TASKS, TaskWords

# What the `Type` column says, by the `format` of a key.
KINDS = {
    "selection": "[selection](#selections)",
    "rate": "number above 0",
    "share": "share: 0.1 or 10%",
    "interval": "[interval](#intervals)",
    "cadence": "[interval](#intervals)",
    "gain": "number, or `0.5 SE`",
    "threshold": "`below` and a number",
    "multiplier": "`x` and a number below 1",
    "weight": "[weight](#joint-objectives)",
    "word": "short word",
    "name": "name",
    "metric": "[metric](#tasks)",
    "metric values": "mapping of [metrics](#tasks) to numbers",
    "label weights": "mapping of labels to numbers above 0",
}
# The parts that are not named as the key that holds them.
ENTRIES = {
    "Stage": "A stage",
    "Repetition": "A block that repeats",
    "ByTurns": "`train`",
    "Scaled": "`rate`",
    "Scoring": "`score`",
    "OwnView": "`joint.full`, `joint.partial`, `joint.adapter`",
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
| `adapter.layers[-2:]` | the adapters in some layers, which `layers[-2:]` leaves out |
| `name("*.pooler.*")` | parameters whose name matches a shell pattern |
| `top(rgn, 25%)`, `bottom(rgn, 25%)` | what scores highest or lowest ([choices](#choices)) |
| `random(50%, by=layer)`, `random(2, by=layer)` | what chance draws, by the run's seed |
| `lowest_layers(25%)` | layers from the input on |
| `a \\| b`, `a & b`, `a - b`, `( )` | either, both, the first without the second |

Roles join with `&`: `layers[-2:] & norm`. A selection that matches nothing in the model is an error that lists the
roles there are. Inside `{{...}}` a selection with a square bracket or a comma needs quotes around it, as YAML has it:
`{{lora: {{on: "layers[-2:] & attention"}}}}`.
"""

SCORING = """\
## Choices

`top(SCORE, AMOUNT)`, `bottom(SCORE, AMOUNT)`, `random(AMOUNT)`, `cycle()` and `lowest_layers(AMOUNT)` choose a part of
what `of` holds: `top(rgn, 25%, of=attention)`. Without `of` they choose among `layers`; of adapters with `of=adapter`.
Note that `top(rgn, 25%) & attention` is something else: the attention weights among the top quarter of all layers.

| write | for |
|---|---|
| `by=tensor` | whole tensors; so it is where nothing is said |
| `by=layer` | whole layers, scored by the mean over their weights |
| `by=element` | single elements, in `train` alone: all others keep their bits, decay and momentum included |
| `25%` | by layer, a quarter of the layers; else a quarter of the weights: tensors are taken in order until their \
weights come nearest to it. Something is always chosen |
| `2` | two layers, tensors or elements |

`random(...)` draws when the stage begins, from the run's seed; the same words mean the same weights in all of a stage's
selections. `cycle(by=layer)` takes one after another, where weights take turns ([over time](#over-time)).

| score | meaning |
|---|---|
{rows}

Scores are measured when the stage begins, over `score: {{batches: 8}}` of the training rows, dropout off, and written
to `stages/NN-NAME/measures/`, where a resumed run reads them.
{elements} also score single elements; {matrices} score matrices only,
so that nothing else is chosen by them. `rate: {{scale: rgn}}` makes rates follow a score (Auto-RGN).
"""

OVER_TIME = """\
## Over time

| write | for |
|---|---|
| `train: {always: embeddings \\| head, rotate: {choose: "random(2, by=layer)", every: 20 updates}}` | LISA: two \
layers by lot beside embeddings and head, drawn anew every 20 updates |
| `train: {always: head, rotate: {choose: "cycle(by=layer)", every: 50 updates}}` | BAdam: one layer after another |
| `train: {always: head, rotate: {choose: "random(50%, of=attention) \\| random(50%, of=mlp)", every: 1 epoch}}` | \
HFT: half of the matrices of each kind, drawn anew every epoch |
| `train: {rotate: {choose: "top(fisher, 1%, by=element)", every: 100 updates}}` | single elements, scored anew |
| `unfreeze: {from: top, one: epoch}` | gradual unfreezing: head and top layer first, one more layer each epoch |
| `freeze_when: {change: below 1e-3, check: 10%}` | the lowest layers freeze once they have settled |

What rests in a turn keeps its bits and gets no gradient; below the lowest weight that moves nothing is computed
backward. Rates, decay and `rates` hold for all that may move in the stage; choices of `rates` are made when the stage
begins. `stages/NN-NAME/turns.jsonl` tells for every turn its first update, how many elements of which weights move in
it, and the scores or changes that decided it.
"""

OTHERWISE = """\
## `accept` and `otherwise`

A stage with `accept` is kept only if its score gained enough on the model before it. `otherwise` says what happens to
one that did not; it needs `accept` beside it.

| `otherwise` | what happens |
|---|---|
{rows}
| `{{retry: {{rate: x0.3, times: 2}}}}` | retry with numbers of your own |

An adapter goes with the stage that attached it: a later stage that trains `adapter` attaches its own, or the earlier
one is kept for sure.
"""

COMBINING = """\
## Combining and repeating

A stage merges and attaches first, trains then, if it has `train`, and combines at the end; the verdict is on what
comes out. All that is combined is named: earlier stages for the model as it stood after them (one that was rolled back
left the model before it), `pretrained`, and the stage itself for the model as it stands before combining. So the
interpolation of WiSE-FT, kept only if it surely gains, is:

```yaml
stages:
  - {name: full, train: all}
  - {name: wise, combine: {how: interpolate, with: [pretrained, full]}, accept: {gain: 0.5 SE}}
```

A block that repeats is written out when the recipe is read. Rounds of LoRA, each folded into the base, the last three
models averaged:

```yaml
stages:
  - repeat:
      times: 3
      stages:
        - {name: lora, attach: {lora: {rank: 8}}, train: adapter | head}
        - {name: fold, merge: true, train: head, until: {updates: 20}}
  - {name: soup, combine: {how: average, with: [fold-1, fold-2, fold-3]}}
```
"""

ADAPTERS = """\
## Adapters

| write | for |
|---|---|
| `attach: {lora: {rank: 8, plus: 16}}` | LoRA+: the second factor moves 16 times as fast as the first |
| `attach: {lora: {rank: 64, rslora: true}}` | rsLoRA; `dora` and `pissa` likewise, and together where wanted |
| `attach: {adalora: {rank: 8, start: 12}}` | AdaLoRA: each layer begins at rank 12, and 8 on average are left |
| `attach: {bottleneck: {on: attention \\| mlp}}` | bottleneck adapters where Houlsby et al. put them |
| `attach: {bottleneck: {on: mlp}}` | where Pfeiffer et al. do |
| `attach: {bottleneck: {on: mlp, placement: parallel}}` | beside the layer |
| `attach: {prefix: {length: 10}}` | prefix tuning: ten learned keys and values in every attention |
| `attach: [{lora: {on: attention}}, {ia3: {on: mlp}}]` | several, on layers of their own |
| `attach: [{lora: {}}, {name: b, lora: {rank: 2}, stack: true}]` | several on the same layers |
| `attach: {folder: runs/old/adapter}` | one that was trained elsewhere |

A later stage may attach another adapter beside those that stand, under another name: `adapter.NAME` selects one of
them, `adapter` all. `merge: NAME` and `drop: NAME` take one, `true` takes all. A merge is done in float32, and outputs
are compared before and after; bottlenecks, which have a nonlinearity inside, and prefixes cannot be merged. A stage
that is rolled back gives back what it merged or dropped. Several adapters are saved each in a folder of its name, on
`base/`.
"""

LESS = " \u2193"
TASKS_PAGE = """\
## Tasks

Of the keys of `data` that name columns, a task reads its own; a required column that is not named is the one of the
key's own name. The first metric is what counts where nothing is said; of those marked \u2193, less is better.

| task | columns | metrics |
|---|---|---|
{rows}
"""

JOINT = """\
## Joint objectives

`joint` trains full, partial and adapter weights at once: alpha L_full + beta L_partial + gamma L_adapter, where the
modes say what the weights are weights of. [joint.md](joint.md) says why, and when to use which.

| write | for |
|---|---|
| `joint: {mode: update, full: 0.3, partial: 0.7, adapter: 1, of: "layers[-2:]"}` | factors of the rates |
| `joint: {mode: views, full: 0.5, adapter: 1, kl: 0.1}` | losses of the base alone and of the adapter over it |
| `joint: {mode: views, full: {task: language_modelling, data: {train: texts.csv}}, adapter: 1}` | the base goes on \
learning general text while the adapter learns the task |
| `joint: {mode: views, full: gradnorm, adapter: gradnorm}` | weights that are balanced on the head |
| `joint: {mode: sample, full: 1, partial: 1, adapter: 2, of: "layers[-2:]", every: 20 updates}` | how often \
each learns |
| `joint: {mode: route, full: 1, adapter: 0.5}` | the better side of each layer; the weights are priors |

A weight is a number or a course over the stage: `0 -> 1 cosine`, `1 -> 0` (a straight line), or pieces that each hold
until a share of the stage or an update: `1 until 40%, 1 -> 0 until 60%, 0`. What counts for nothing rests. Two views
and more may have a weight that training finds: `validate`, `gradnorm` or `uncertainty`.
"""

INTERVALS = """\
## Intervals

A number and a unit: `1 epoch`, `0.5 epochs`, `200 updates`. Updates are whole numbers. How often a running stage is
saved may be in `minutes` as well, as it does not change the result.
"""

SHIPPED = "## Shipped recipes\n\nThey have a page of their own: [recipes.md](recipes.md).\n"


def reference() -> str:
    """Give the whole page."""
    made = shape.schema()
    tables = [_table("The recipe", made)]
    tables += [_table(_heading(name), made["$defs"][name]) for name in dict.fromkeys(_parts(made))]
    return "\n".join(
        [
            START,
            *tables,
            _tasks(),
            _selections(),
            _scores(),
            OVER_TIME,
            ADAPTERS,
            JOINT,
            _otherwise(made),
            COMBINING,
            INTERVALS,
            SHIPPED,
        ]
    )


def _parts(node: shape.Node) -> list[str]:
    """List the parts below a part, each followed by its own."""
    found: list[str] = []
    for child in node["properties"].values():
        for name in _references(child):
            found += [name, *_parts(shape.schema()["$defs"][name])]
    return list(dict.fromkeys(found))


def _references(node: Any) -> list[str]:
    if not isinstance(node, dict):
        return []
    here = [node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else []
    below = [node.get("items"), *shape.alternatives(node)]
    return here + [name for child in below for name in _references(child)]


def _heading(name: str) -> str:
    """Name a part by the key that holds it, such as `data.split`."""
    key = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    homes = shape.homes()
    if key in homes:
        path = [str(part) for part in (*homes[key][0], key) if part not in ("stages", "[]")]
        return f"`{'.'.join(path)}`"
    return ENTRIES[name]


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
            return f"[mapping](#{_anchor(node['title'])})"
        case "object":
            return "mapping of [selections](#selections) to rates"
        case "array":
            return f"list of {' and '.join(map(_entries, shape.options(node['items'])))}"
    names = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text"}
    return names[node["type"]] + shape.bounds(node)


def _entries(node: shape.Node) -> str:
    """Name the entries of a list."""
    if node["type"] != "object":
        return {"string": "names", "number": "numbers"}[node["type"]]
    if node["title"] == "Attach":
        return "such mappings"
    return {"Stage": "[stages]", "Repetition": "[blocks]"}[node["title"]] + f"(#{_anchor(node['title'])})"


def _anchor(name: str) -> str:
    """Give a heading's place on the page, as GitHub names it."""
    heading = _heading(name).lower().replace(" ", "-")
    return "".join(letter for letter in heading if letter.isalnum() or letter in "_-")


def _selections() -> str:
    code = "`{}`".format
    parts = [f"{role}.{part}" for role, words in PARTS.items() for part in words]
    roles = [word for word in WORDS if word not in SIDES]
    return SELECTIONS.format(
        roles=", ".join(map(code, roles)), parts=", ".join(map(code, parts)), sides=", ".join(map(code, SIDES))
    )


def _scores() -> str:
    rows = [f"| `{score}` | {meaning} |" for score, meaning in SCORES.items()]
    elements, matrices = (", ".join(f"`{score}`" for score in scores) for scores in (ELEMENT_SCORES, MATRIX_SCORES))
    return SCORING.format(rows="\n".join(rows), elements=elements, matrices=matrices)


def _tasks() -> str:
    rows = []
    for name, words in TASKS.items():
        metrics = (f"`{metric}`{LESS if METRICS[metric].lower else ''}" for metric in words.metrics)
        rows.append(f"| `{name}`: {words.about} | {_forms(words)} | {', '.join(metrics)} |")
    return TASKS_PAGE.format(rows="\n".join(rows))


def _forms(words: TaskWords) -> str:
    """Write the ways of giving examples: required keys, optional ones in brackets."""
    code = "`{}`".format
    return "; or ".join(
        ", ".join([*map(code, form.required), *(f"({code(key)})" for key in form.optional)]) for form in words.forms
    )


def _otherwise(made: shape.Node) -> str:
    """Split the description of `otherwise` into one row for each word."""
    text: str = made["$defs"]["Stage"]["properties"]["otherwise"]["description"].split("`accept`. ", 1)[1]
    rows = []
    for sentence in text.split(". "):
        word, _, meaning = sentence.partition(": ")
        rows.append(f"| `{word}` | {meaning.removesuffix('.')} |")
    return OTHERWISE.format(rows="\n".join(rows))
