"""Who is told how a run goes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alloytune.record.folder import RunFolder

if TYPE_CHECKING:
    from alloytune.build.session import Session
    from alloytune.recipe.types.stage import Stage
    from alloytune.tasks.task import Scores
    from alloytune.train.loop import Step
    from alloytune.train.moving import Moving
    from alloytune.train.stage import Progress, StagePlan


class Watcher:
    """Is told of everything that a user would want to see, in the order in which it happens, and says nothing.

    The terminal overrides what it shows.
    """

    def on_data(self, folder: RunFolder) -> None:
        """The data is cleaned and split; `folder` holds the audit."""

    def on_model(self, session: "Session") -> None:
        """The model is loaded, and the recipe fits it."""

    def on_stage(self, number: int, stage: "Stage", moving: "Moving", plan: "StagePlan", progress: "Progress") -> None:
        """A stage begins, or goes on from `progress`."""

    def on_rate_search(self, number: int, stage: "Stage") -> None:
        """A stage has begun whose rates are to be found first."""

    def on_starting_rates(self, number: int, stage: "Stage", rates: Sequence[float]) -> None:
        """A stage has begun that is too short to search its rates, or ends by time alone; it takes those given."""

    def on_combine(self, number: int, stage: "Stage") -> None:
        """A stage has trained, if it trains, and combines its weights with earlier ones."""

    def on_step(self, step: "Step", progress: "Progress") -> None:
        """An update is done."""

    def on_scores(self, scores: "Scores", progress: "Progress") -> None:
        """Validation was scored within the stage."""

    def on_retry(self, number: int, result: Mapping[str, Any]) -> None:
        """A stage was rolled back and is tried again."""

    def on_stage_end(self, number: int, result: Mapping[str, Any]) -> None:
        """A stage has its verdict."""

    def on_finish(self, doing: str) -> None:
        """All stages are done; the run is `testing`, `saving` and so on."""

    def on_end(self, folder: RunFolder) -> None:
        """The run is complete; `folder` holds the results."""
