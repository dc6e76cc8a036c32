"""What may become of a stage, in the words that the record holds."""

from enum import StrEnum


class Decision(StrEnum):
    """What became of a stage."""

    KEPT = "kept"
    ROLLED_BACK = "rolled back"
    NOT_RUN = "not run"
