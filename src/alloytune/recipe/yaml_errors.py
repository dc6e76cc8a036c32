"""Say in plain words why a text is not YAML."""

import re

from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

_NO_ANCHOR = "expected alphabetic or numeric character"  # behind a & that is one of ours

# The first pattern that is found in ruamel's problem decides; {0} and {1} are its groups.
EXPLANATIONS = (
    (r'found duplicate key "(.*?)" with', "the key '{0}' stands twice; keep one of them"),
    (r"found character '\\t'", "a tab stands where YAML takes spaces only; indent with spaces"),
    (r"found character '(.)' that cannot start", "a value cannot start with {0}; put it in quotes"),
    (r"but got '<stream end>'", "a bracket that is opened here is never closed"),
    (r"found unexpected end of stream", "a quote that is opened here is never closed"),
    (r"found undefined alias '(.*?)'", "*{0} refers to an anchor that there is not; a text with * needs quotes"),
    (_NO_ANCHOR, "& begins the name of an anchor in YAML; a text with & needs quotes"),
    (r"mapping values are not allowed", "a ':' cannot stand here; check the indentation, or put the text in quotes"),
    (r"sequence entries are not allowed", "a '-' cannot start a list here; put the list on lines of its own"),
    (r"expected <block end>, but found '(?:\]|\})'", "a bracket is closed that was never opened"),
    (r"expected <block end>, but found '<scalar>'", "text stands after the end of a quoted value"),
    (r"expected <block end>", "the line is not indented like those beside it"),
    (r"expected a comment or a line break", "a value that starts with | or > needs quotes"),
    (r"could not find expected ':'", "the line has no ':'; write `key: value`"),
    (r"found another document", "a second document starts here; a file holds one recipe, remove the ---"),
    (r"found unknown escape character '(.*?)'", "\\{0} means nothing inside double quotes; use single quotes"),
    (r"for merging", "<< takes an alias of a mapping"),
)


# What is best shown where it begins, rather than where it could not go on.
AT_START = ("never closed", "no ':'", "| or >")

# What ruamel says where a selection without quotes cannot go on inside braces.
BREAKS_EXPRESSION = ("expected ','", "'|' that cannot start", _NO_ANCHOR)

_WORD_WITH_SETTINGS = re.compile(r"(?:: |[{,] *)([\w-]+) +(?:\{[^{}]*)?$")  # retry {rate: x0.3}


class Broken(Exception):  # noqa: N818 - never leaves the package; becomes a RecipeError
    """Text that cannot be read, with the place counted from 1."""

    def __init__(self, message: str, line: int | None, column: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


def explain(error: MarkedYAMLError | ReaderError, text: str) -> Broken:
    """Translate one of ruamel's errors."""
    if isinstance(error, ReaderError):
        before = text[: error.position]
        column = len(before) - (before.rfind("\n") + 1) + 1
        return Broken(f"the character {chr(error.character)!r} cannot stand in YAML", before.count("\n") + 1, column)
    problem, mark = str(error.problem), error.problem_mark
    if _NO_ANCHOR in problem:
        mark = error.context_mark
    if mark is None:
        return Broken(f"this is not YAML ({problem})", None, None)
    expression = _unquoted_expression(problem, text.splitlines()[mark.line : mark.line + 1], mark.column)
    if expression is not None:
        words, column = expression
        message = (
            f"the expression {words} needs quotes inside {{...}} or [...], because of its brackets, commas or |; "
            f'write "{words}"'
        )
        return Broken(message, mark.line + 1, column + 1)
    before = text.splitlines()[mark.line][: mark.column] if mark.line < len(text.splitlines()) else ""
    if settings := _WORD_WITH_SETTINGS.search(before):
        message = f"settings of {settings[1]!r} stand in braces with it; write {{{settings[1]}: {{...}}}}"
        return Broken(message, mark.line + 1, settings.start(1) + 1)
    message = _message(problem)
    if error.context_mark is not None and any(words in message for words in AT_START):
        mark = error.context_mark
    return Broken(message, mark.line + 1, mark.column + 1)


def _message(problem: str) -> str:
    for pattern, message in EXPLANATIONS:
        if match := re.search(pattern, problem):
            return message.format(*match.groups())
    return f"this is not YAML ({problem})"


def _unquoted_expression(problem: str, lines: list[str], column: int) -> tuple[str, int] | None:
    """Find a selection such as `layers[-2:] | head` that broke a `{...}`, and the column where it starts."""
    if not lines or not any(words in problem for words in BREAKS_EXPRESSION):
        return None
    line = lines[0]
    match = re.search(r"[{\[,]\s*(?:[\w-]+:\s+)?([^\s{}:,\"'\[](?:[^{}:,\"']|:(?!\s))*)$", line[:column])
    if not match or line[column : column + 1] not in tuple("[]|&("):
        return None
    start = match.start(1)
    rest = re.match(r"(?:[^{},:\"']|:(?!\s))*", line[start:])
    return (rest[0].strip(), start) if rest else None
