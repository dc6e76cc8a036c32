"""What earlier weights answered, put into the examples of a task that compares with them."""

from collections.abc import Sequence

from alloytune.build.session import Session
from alloytune.evaluate.predict import predict
from alloytune.tasks.abilities import Anchored


def anchor(session: Session, splits: Sequence[str], *, exact: bool = False) -> None:
    """Let the model as it is now answer these splits, if the task compares with that; `exact` is in float32.

    Nothing of it is saved: a resumed run finds the same weights at the same place, and so the same answers.
    """
    task = session.task
    if not isinstance(task, Anchored):
        return
    machine = session.machine.exact() if exact else session.machine
    found = {
        split: predict(session.state.model, task, session.examples[split], session.tokenizer, machine)
        for split in splits
        if session.examples[split]
    }
    anchored = {split: task.anchored(answers, session.examples[split]) for split, answers in found.items()}
    session.change(examples={**session.examples, **anchored})
