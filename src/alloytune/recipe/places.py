"""Where the values of a recipe stand: in a file, on the command line, or in code."""

from dataclasses import dataclass, field

from alloytune.errors import Problem

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Line and column of a key and of its value, both counted from 1; an entry of a list is its own key."""

    key: tuple[int, int]
    value: tuple[int, int]


@dataclass(frozen=True)
class Mistake:
    """Something wrong at a path, before its place is looked up.

    `at_key` points at the key rather than at the value. `hides` are paths about which nothing more should be
    said, because this mistake explains it: a misspelt `rate` is not also a missing one. `about` are other values
    that the mistake rests on: it is not said where one of them is itself mistaken.
    """

    path: KeyPath
    message: str
    at_key: bool = False
    hides: tuple[KeyPath, ...] = ()
    about: tuple[KeyPath, ...] = ()


@dataclass
class Places:
    """Knows for every path where its value was given; `origins` are values that did not come from the file."""

    source: str
    marks: dict[KeyPath, Place] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str | None:
        """Name the option that gave the value at a path; None where it stands in the file."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        if path not in self.marks:  # a mapping that an option made, such as `until` by stages.0.until.patience
            return next((source for below, source in self.origins.items() if path and starts_with(below, path)), None)
        return None

    def problem(self, mistake: Mistake) -> Problem:
        """Give a mistake its place; a value that is absent has the place of what should hold it."""
        origin = self.origin(mistake.path)
        if origin is not None or not self.marks:
            return Problem(origin or self.source, None, None, dotted(mistake.path), mistake.message)
        path = mistake.path
        while path not in self.marks:
            path = path[:-1]
        place = self.marks[path]
        line, column = place.key if mistake.at_key and path == mistake.path else place.value
        return Problem(self.source, line, column, dotted(mistake.path), mistake.message)

    def problems(self, mistakes: list[Mistake]) -> list[Problem]:
        """Place all mistakes, in the order of the file; those without a line come first."""
        found = dict.fromkeys(self.problem(mistake) for mistake in mistakes)
        return sorted(found, key=lambda problem: (problem.line or 0, problem.column or 0, problem.path))


def dotted(path: KeyPath) -> str:
    """Write a path as `stages[1].train`; a key that is no plain word is quoted, as `rates["mlp.up"]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("_", "").replace("-", "").isalnum():
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text


def starts_with(path: KeyPath, start: KeyPath) -> bool:
    """Say whether a path is another one or lies below it."""
    return path[: len(start)] == start
