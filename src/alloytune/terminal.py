"""A run on the terminal: what cleaning did, a bar per stage, the verdicts, the tables at the end."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from alloytune.metrics import METRICS
from alloytune.record.decisions import Decision
from alloytune.record.folder import RunFolder
from alloytune.report.scores import score_line, shown_metrics
from alloytune.report.tables import audit_table, named_rates, print_places, run_report, short_rates, tell_of_rows
from alloytune.train.range_test import FEWEST_SEARCHED
from alloytune.watch import Watcher

SMOOTHING = 0.95  # of the loss shown: about the mean of the last 20 updates


@contextmanager
def shown_on(console: Console) -> Iterator["Terminal"]:
    """Show what goes on in the block, and leave the terminal tidy, whatever happens."""
    terminal = Terminal(console)
    try:
        yield terminal
    finally:
        terminal.close()


class Terminal(Watcher):
    """Shows a run as it goes. Where the output is no terminal, a line per evaluation takes the bar's place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._total: float = 1.0
        self._loss: float | None = None
        self._began = time.monotonic()
        self._new: RunFolder | None = None  # of a run that begins now; one that is resumed began long before

    def on_data(self, folder: RunFolder) -> None:
        """Show the audit."""
        self._new = folder
        self.console.print(audit_table(folder.read("data/audit.json")))

    def on_model(self, session: Any) -> None:
        """Show where dropped rows are told of, now that nothing is refused any more, and the model in a line."""
        if self._new:
            self.console.print(f"every dropped row with its reason: {self._new.data / 'audit.json'}\n", markup=False)
        num_weights = sum(weight.numel() for weight in session.state.model.parameters())
        self.console.print(
            f"model {session.source}: {num_weights:,} parameters, on {session.machine.device} in "
            f"{str(session.machine.precision).removeprefix('torch.')}",
            markup=False,
        )
        if told := tell_of_rows(session.learning, session.max_length):
            self.console.print(told)

    def on_stage(self, number: int, stage: Any, moving: Any, plan: Any, progress: Any) -> None:
        """Begin a bar."""
        self._close_bar()
        where = f" from update {progress.update}" if progress.update else ""
        self.console.print()
        self._say(
            f"[bold]stage {number + 1}: {escape(stage.name)}[/] trains {escape(stage.trained)} "
            f"at rate {named_rates((group.role, group.rate) for group in moving.groups)}{where}"
        )
        self._loss = None
        self._total = plan.max_updates or 0
        self._bar = Progress(
            TextColumn("  {task.fields[state]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=1.0, state="")
        self._plan = plan

    def on_rate_search(self, number: int, stage: Any) -> None:
        """Say what takes time before the first update."""
        self._say(f"\nstage {number + 1}: {escape(stage.name)}: finding its rate ...")

    def on_starting_rates(self, number: int, stage: Any, rates: Sequence[float]) -> None:
        """Say what `rate: auto` comes to without a search."""
        starting = short_rates(sorted(rates, reverse=True))
        self._say(
            f"\nstage {number + 1}: {escape(stage.name)}: no search for its rate, which takes a stage known to have "
            f"{FEWEST_SEARCHED * len(rates)} updates or more; it takes the starting {starting}"
        )

    def on_combine(self, number: int, stage: Any) -> None:
        """Name what is combined."""
        self._close_bar()
        if stage.train is None:
            self.console.print()
        named = f" of {', '.join(stage.combine.with_)}" if stage.combine.with_ else ""
        self._say(f"[bold]stage {number + 1}: {escape(stage.name)}[/] combines: {stage.combine.how}{escape(named)}")

    def on_step(self, step: Any, progress: Any) -> None:
        """Move the bar."""
        self._loss = step.loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * step.loss
        if self._bar is not None:
            speed = progress.num_tokens / max(progress.seconds, 1e-9)
            of = f"/{self._total}" if self._total else ""
            state = f"update {step.update}{of}  loss {self._loss:.4f}  {speed:,.0f} tokens/s"
            done = self._plan.progress(step.update + 0.5, progress.seconds, progress.num_tokens)
            self._bar.update(self._task, completed=min(done, 1.0), state=state)

    def on_scores(self, scores: Any, progress: Any) -> None:
        """Show an evaluation."""
        values = scores.values
        mark = "  to keep" if progress.best_update == progress.update and self._plan.keep == "best" else ""
        training = "" if self._loss is None else f" (training {self._loss:.3f})"
        self._say(f"  update {progress.update}: {score_line(values)}{training}{mark}")

    def on_retry(self, number: int, result: Mapping[str, Any]) -> None:
        """Tell that a stage is tried again."""
        self._close_bar()
        self.console.print(f"  [yellow]not accepted ({escape(result['reason'])}): again, at lower rates[/]")

    def on_stage_end(self, number: int, result: Mapping[str, Any]) -> None:
        """Show scores, change and verdict."""
        self._close_bar()
        if "scores" not in result:
            decision = f"[yellow]{result['decision']}[/]: {escape(result['reason'])}"
            self._say(f"\nstage {number + 1}: {escape(result['name'])} {decision}")
            return
        values, change = result["scores"]["values"], result["change"]
        color = "green" if result["decision"] == Decision.KEPT else "yellow"
        shown = "  ".join(
            f"{METRICS[metric].heading} {values[metric]:.4f} ({change[metric]:+.4f})"
            for metric in shown_metrics(values)
        )
        self._say(f"  [{color}]{result['decision']}[/]: {shown}; {escape(result['reason'])}")
        if "combined" in result:
            shares = ", ".join(f"{name} {share:.2g}" for name, share in result["combined"].items())
            self._say(f"  combined: {escape(shares)}")

    def on_finish(self, doing: str) -> None:
        """Tell what happens after the last stage."""
        self._close_bar()
        self.console.print(f"{doing} ...", markup=False)

    def on_end(self, folder: RunFolder) -> None:
        """Show the tables."""
        self.console.print()
        self.console.print(run_report(folder))
        print_places(self.console, folder)
        seconds = sum(stage.get("seconds", 0.0) for stage in folder.read("results.json")["stages"])
        whole = f"whole run: {time.monotonic() - self._began:.0f} s, of them " if self._new else ""
        self._say(f"{whole}training: {seconds:.0f} s")

    def close(self) -> None:
        """Leave no bar behind."""
        self._close_bar()

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
