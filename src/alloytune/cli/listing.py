"""The list of recipes in the terminal."""

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from alloytune.recipe.catalogue import OWN, PURPOSES, Entry, own, shipped
from alloytune.recipe.costs import MEASURED_ON, show_share


def listing() -> Group:
    """Give all recipes by purpose, the user's own at the end."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("")
    table.add_column("")
    table.add_column("moves", justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    for purpose, entries in shipped().items():
        _add(table, purpose, PURPOSES[purpose], entries)
    _add(table, OWN, "", own())
    note = f"moves: the most at one time; cost: of training, as a part of full's; both on {MEASURED_ON}"
    return Group(table, Text(f"\n{note}", style="dim"))


def _add(table: Table, purpose: str, meaning: str, entries: Iterable[Entry]) -> None:
    if entries:
        table.add_row(Text(purpose.upper(), style="bold"), Text(meaning, style="italic"))
    for entry in entries:
        cost = ("", "") if entry.cost is None else (show_share(entry.cost.trained_share), f"{entry.cost.relative:.2f}")
        table.add_row(Text(entry.name), Text(entry.summary), *cost)
