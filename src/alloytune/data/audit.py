"""The account of every row that was read."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from alloytune.data.clean import Repair
from alloytune.data.rules import Dropped


@dataclass(frozen=True)
class Audit:
    """What became of every row: rows read and rows parted off others are rows kept, dropped or not used.

    `read` counts rows by file, `kept` by split, `classes` by split and class (where there are classes), `not_used` by
    reason, `parted` what rows with a list made beyond one each. `repairs` are the first few of `repaired`.
    `near_groups` are groups of near-duplicate rows, `near_rows` the rows in them.
    """

    read: dict[str, int]
    kept: dict[str, int]
    classes: dict[str, dict[str, int]]
    dropped: list[Dropped] = field(default_factory=list)
    not_used: dict[str, int] = field(default_factory=dict)
    parted: int = 0
    repaired: int = 0
    repairs: list[Repair] = field(default_factory=list)
    near_groups: int = 0
    near_rows: int = 0
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        read, kept, unused = (sum(part.values()) for part in (self.read, self.kept, self.not_used))
        if read + self.parted != kept + len(self.dropped) + unused:
            raise AssertionError(
                f"read {read} rows and parted off {self.parted}, but kept {kept}, dropped {len(self.dropped)} and did "
                f"not use {unused}"
            )

    def dropped_by_reason(self) -> dict[str, int]:
        """Count the dropped rows by reason, in the order in which reasons were looked for."""
        return dict(Counter(row.reason for row in self.dropped))

    def to_json(self) -> dict[str, Any]:
        """Give the audit as plain values, the dropped rows counted by reason and listed."""
        plain = asdict(self)
        return {
            "read": plain.pop("read"),
            "kept": plain.pop("kept"),
            "dropped_by_reason": self.dropped_by_reason(),
            "not_used": plain.pop("not_used"),
            "warnings": plain.pop("warnings"),
        } | plain


def audit_from_json(plain: dict[str, Any]) -> Audit:
    """Make an audit of what `to_json` gave."""
    given = {name: value for name, value in plain.items() if name != "dropped_by_reason"}
    given["dropped"] = [Dropped(**row) for row in given["dropped"]]
    given["repairs"] = [Repair(**row) for row in given["repairs"]]
    return Audit(**given)
