"""Selections: sets of parameters, written as expressions over roles.

`layers[-2:] | head`, `(attention | mlp) & layers[:3]`, `all - embeddings`, `name("*.pooler.*")`, and choices by measure
or by chance: `top(rgn, 25%)`, `random(2, by=layer)`, `top(fisher, 1%, by=element, of=attention)`.

An expression is valid Python but for its shares (`25%`), so the standard library reads it; a short whitelist says what
may stand in it. `alloytune.selection` finds what an expression holds in a model.
"""

import ast
import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

SIDES = ("encoder", "decoder", "cross")
PARTS = {"attention": ("query", "key", "value", "output"), "mlp": ("up", "gate", "down")}
WORDS = (
    "all",
    "embeddings",
    "layers",
    "attention",
    "mlp",
    "norm",
    "bias",
    "head",
    "pooler",
    "adapter",
    *SIDES,
)
SCORES = {
    "rgn": "norm of the gradient / norm of the weights (Lee et al. 2023, surgical fine-tuning)",
    "snr": "squared mean of the gradient over its variance from batch to batch (Lee et al. 2023)",
    "fisher": "mean squared gradient: the diagonal of the empirical Fisher matrix (Xu et al. 2021, Child-Tuning)",
    "gradient": "norm of the gradient",
    "weight_change": "norm of the change since pretraining / norm of the pretrained weights",
    "spectral_snr": "singular values above the Marchenko-Pastur bound over those below (Hartford et al. 2024)",
    "lowrank_misfit": "share of the gradient's energy outside its leading singular directions",
}
ELEMENT_SCORES = ("snr", "fisher", "gradient", "weight_change")  # that single elements have, too
MATRIX_SCORES = ("spectral_snr", "lowrank_misfit")  # that only matrices have
UNITS = ("layer", "tensor", "element")
CHOICES = {
    "top": "top(rgn, 25%)",
    "bottom": "bottom(rgn, 25%)",
    "random": "random(50%, by=layer)",
    "cycle": "cycle(by=layer)",
    "lowest_layers": "lowest_layers(25%)",
}


@dataclass(frozen=True)
class Role:
    """All parameters of a role, such as `attention.query` or `encoder.norm`."""

    path: str


@dataclass(frozen=True)
class Layers:
    """Some layers of a stack, by a Python slice or one index."""

    path: str
    index: int | slice

    def __hash__(self) -> int:
        return hash((self.path, str(self.index)))


@dataclass(frozen=True)
class Named:
    """Parameters whose name matches a shell pattern."""

    pattern: str


@dataclass(frozen=True)
class Joined:
    """Two selections and `|`, `&` or `-` between them."""

    left: "Selection"
    operator: str
    right: "Selection"


@dataclass(frozen=True)
class Choice:
    """A part of a selection (`of`), chosen in whole layers, whole tensors or single elements (`by`).

    `how` is top or bottom (by `score`), random, cycle (one after another, over time) or lowest_layers. `amount` is a
    number of layers, tensors or elements, or a share below 1. A share is one of layers where layers are chosen (LISA,
    BAdam), of weights otherwise: tensors are taken in order until their weights come nearest to the share, so that a
    quarter costs a quarter whether biases or matrices lead; among tensors of one kind that is the share of tensors, as
    in Spectrum and HFT. Elements are counted over all of `of` together (FISH masks, Child-Tuning, LT-SFT). Something is
    always chosen.
    """

    how: str
    amount: float | int
    by: str
    of: "Selection"
    score: str = ""


Selection = Role | Layers | Named | Joined | Choice

_OPERATORS: dict[type[ast.operator], str] = {ast.BitOr: "|", ast.BitAnd: "&", ast.Sub: "-"}

# `25%` before a comma or a bracket is read as `25j`, an imaginary number: the one literal that nothing else here means.
# It is as long, so that what the parser says about places holds for the text as it was written. Strings stay.
_STRING_OR_SHARE = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?<![\w.])(\d+(?:\.\d+)?)%(?=\s*[,)])""")


def parse(text: str) -> Selection:
    """Read an expression; raises ValueError that says what is wrong and what was probably meant."""
    text = text.strip()
    try:
        tree = ast.parse(_STRING_OR_SHARE.sub(lambda found: found[1] or f"{found[2]}j", text), mode="eval")
    except SyntaxError as error:
        raise ValueError(
            f"{text!r} is not a selection ({error.msg}); write roles joined by |, & or -, such as 'layers[-2:] | head'"
        ) from None
    except RecursionError:
        raise ValueError("the selection is nested too deeply to be read; write it with fewer brackets") from None
    return _read(tree.body, text)


def parts_in(selection: Selection) -> Iterator[Selection]:
    """Give an expression and all that it is made of, left to right."""
    yield selection
    match selection:
        case Joined(left, _, right):
            yield from parts_in(left)
            yield from parts_in(right)
        case Choice(of=of):
            yield from parts_in(of)


def roles_in(selection: Selection) -> Iterator[str]:
    """Give every role that an expression names, such as `head` or `adapter.low`, left to right."""
    return (part.path for part in parts_in(selection) if isinstance(part, Role | Layers))


def choices_in(selection: Selection) -> Iterator[Choice]:
    """Give every choice that an expression makes, left to right."""
    return (part for part in parts_in(selection) if isinstance(part, Choice))


def leaves_rest(selection: Selection) -> bool:
    """Tell whether an expression is what a choice leaves of something, such as `attention - top(rgn, 25%)`."""
    match selection:
        case Joined(left, operator, right):
            takes = operator == "-" and any(choices_in(right))
            return takes or leaves_rest(left) or leaves_rest(right)
    return False


def show(selection: Selection) -> str:
    """Write an expression; the same one always in the same words."""
    match selection:
        case Role(path):
            return path
        case Layers(path, slice() as index):
            bounds = ":".join("" if part is None else str(part) for part in (index.start, index.stop, index.step))
            return f"{path}[{bounds.removesuffix(':')}]" if index.step is None else f"{path}[{bounds}]"
        case Layers(path, index):
            return f"{path}[{index}]"
        case Named(pattern):
            return f"name({json.dumps(pattern, ensure_ascii=False)})"
        case Joined(left, operator, right):
            return f"({show(left)} {operator} {show(right)})"
        case Choice(how, amount, by, of, score):
            parts = [score] if score else []
            parts.append(str(amount) if isinstance(amount, int) else f"{100 * amount:.10g}%")
            parts += [] if how == "lowest_layers" else [f"by={by}", f"of={show(of)}"]
            return f"{how}({', '.join(parts)})"


def _read(node: ast.expr, text: str) -> Selection:
    match node:
        case ast.Name() | ast.Attribute():
            return Role(_path(node, text))
        case ast.Subscript(value=value, slice=index):
            path = _path(value, text)
            if path.split(".")[-1] != "layers":
                raise ValueError(f"{path!r} in {text!r} takes no [...]; only layers do, such as layers[-2:]")
            return Layers(path, _index(index, text))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return Joined(_read(left, text), _OPERATORS[type(operator)], _read(right, text))
        case ast.Call(func=ast.Name(id="name"), args=[ast.Constant(value=str() as pattern)], keywords=[]):
            return Named(pattern)
        case ast.Call(func=ast.Name(id=how)) if how in CHOICES:
            return _choice(how, node, text)
    raise ValueError(
        f"{_source(node, text)!r} in {text!r} cannot stand in a selection; "
        "it takes roles, layers[...], name('...'), top(rgn, 25%), random(2, by=layer), |, &, - and brackets"
    )


def _choice(how: str, node: ast.Call, text: str) -> Choice:
    """Read `top(SCORE, AMOUNT)`, `random(AMOUNT)`, `cycle()` and their kin, with `by=` and `of=`."""
    scored = how in ("top", "bottom")
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    places = (["score"] if scored else []) + ["amount"]
    takes = {"by", "of"} if how != "lowest_layers" else set()
    wanted = set(places if how != "cycle" else ())
    is_twice = len(given) < len(node.keywords)
    if (
        is_twice
        or len(node.args) > len(places)
        or not wanted <= set(places[: len(node.args)])
        or not given.keys() <= takes
    ):
        raise ValueError(f"{_source(node, text)!r} in {text!r} is not complete or has too much; write {CHOICES[how]}")
    read = dict(zip(places, node.args, strict=False))
    score = _word(read["score"], tuple(SCORES), "score", text) if scored else ""
    amount = _amount(read["amount"], text, CHOICES[how]) if "amount" in read else 1
    default = "layer" if how in ("cycle", "lowest_layers") else "tensor"
    by = _word(given["by"], UNITS, "unit", text) if "by" in given else default
    if by == "element" and (how == "cycle" or (scored and score not in ELEMENT_SCORES)):
        whole = f"{score!r} is a score of whole tensors" if scored else "a cycle has no end among single elements"
        raise ValueError(f"by=element in {text!r}: {whole}; write by=tensor or by=layer")
    of = _read(given["of"], text) if "of" in given else Role("layers")
    if inner := next(choices_in(of), None):
        raise ValueError(f"{show(inner)!r} in {text!r} is a choice within a choice; `of` takes roles")
    return Choice(how, amount, by, of, score)


def _word(node: ast.expr, known: tuple[str, ...], kind: str, text: str) -> str:
    word = _source(node, text)
    if word in known:
        return word
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    meant = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(known)}"
    raise ValueError(f"unknown {kind} {word!r} in {text!r}; {meant}")


def _amount(node: ast.expr, text: str, example: str) -> float | int:
    match node:
        case ast.Constant(value=complex() as value) if _source(node, text).endswith("%") and 0 < value.imag < 100:
            return value.imag / 100
        case ast.Constant(value=int() as value) if value >= 1 and not isinstance(value, bool):
            return value
    raise ValueError(
        f"{_source(node, text)!r} in {text!r} is no amount; write a share above 0% and below 100%, or a whole number, "
        f"such as {example}"
    )


def _source(node: ast.expr, text: str) -> str:
    """Give a part of the expression as it was written."""
    return ast.get_source_segment(text, node) or text


def _path(node: ast.expr, text: str) -> str:
    """Give a dotted role, checked word by word."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError(
            f"{_source(node, text)!r} in {text!r} cannot stand before a dot; "
            "join with & instead, such as 'layers[-2:] & norm'"
        )
    words.insert(0, node.id)
    first = words[1] if words[0] in SIDES and len(words) > 1 else words[0]
    _require_word(words[0], WORDS, text)
    _require_word(first, WORDS, text)
    rest = words[words.index(first) + 1 :]
    if rest and first != "adapter":
        _require_word(rest[0], PARTS.get(first, ()), text, before=first)
    return ".".join(words)


def _require_word(word: str, known: tuple[str, ...], text: str, before: str = "") -> None:
    if word in known:
        return
    shown = f"{before}.{word}" if before else word
    if not known:
        raise ValueError(f"{shown!r} in {text!r}: {before} has no parts")
    # A part is a role only with what it is a part of before it.
    meant_by = {} if before else {role: role for role in known}
    meant_by |= {part: f"{role}.{part}" for role, parts in PARTS.items() for part in parts if before in ("", role)}
    nearest = difflib.get_close_matches(word, meant_by, n=1, cutoff=0.5)
    meant = f"did you mean {meant_by[nearest[0]]!r}?" if nearest else f"there are {', '.join(meant_by.values())}"
    raise ValueError(f"unknown role {shown!r} in {text!r}; {meant}")


def _index(node: ast.expr, text: str) -> int | slice:
    if isinstance(node, ast.Slice):
        bounds = [None if part is None else _integer(part, text) for part in (node.lower, node.upper, node.step)]
        if bounds[2] == 0:
            raise ValueError(f"a step of 0 in {text!r} selects no layer; leave the step out")
        return slice(*bounds)
    return _integer(node, text)


def _integer(node: ast.expr, text: str) -> int:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(
            f"{_source(node, text)!r} in {text!r} is not a layer number; write layers[0], layers[-2:] or layers[:6:2]"
        )
    return value
