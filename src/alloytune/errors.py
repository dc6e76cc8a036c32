"""Everything Alloytune raises on purpose.

AlloytuneError
├── InputError           the user can mend it: a recipe, a table, a model, an argument
│   └── RecipeError      every mistake found in a recipe, together
├── NotFiniteError       a loss or a gradient is NaN or infinite; no weight was changed by it
├── SaveError            a file could not be written; what was there before is whole
├── VerificationError    a saved model, loaded again, does not give the outputs it should
└── Interrupted          the user pressed Ctrl-C; the run was saved

The command line prints the message as one line and leaves with `exit_code`.
"""

from dataclasses import dataclass


class AlloytuneError(Exception):
    """Base of every error that Alloytune raises on purpose."""

    exit_code = 2


class InputError(AlloytuneError):
    """Something the user gave cannot be used.

    The message reads `where: what; remedy`: the place, the bad value, and what to do about it.
    """

    def __init__(self, where: str, what: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}; {remedy}")
        self.where = where
        self.what = what
        self.remedy = remedy


def first_line(error: BaseException) -> str:
    """Give what another library says of an error, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe. `line` and `column` count from 1; None where a value has no place in a file."""

    source: str
    line: int | None
    column: int | None
    path: str
    message: str

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class RecipeError(InputError):
    """All mistakes found in one recipe; `where` and `what` are those of the first."""

    def __init__(self, problems: list[Problem]) -> None:
        AlloytuneError.__init__(self, "\n".join(str(problem) for problem in problems))
        first = problems[0]
        self.where, self.what, self.remedy = first.path or first.source, first.message, "mend the recipe"
        self.problems = problems


class NotFiniteError(AlloytuneError):
    """A loss, a gradient or an output became NaN or infinite, and training stopped before anything was saved."""


class SaveError(AlloytuneError):
    """A file or folder could not be written, for example because the disk is full."""


class VerificationError(AlloytuneError):
    """A saved model gives other outputs than the model it was saved from."""


class Interrupted(AlloytuneError):  # noqa: N818 - like KeyboardInterrupt, an event rather than an error
    """The user stopped the run; it was saved and can be resumed."""

    exit_code = 130
