"""How fast a stage learns, from recipe to objects: optimizer, course of the rate, decay, clipping, regularisers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.models.adapters import trained_plainly
from alloytune.models.in_force import in_calls
from alloytune.models.recomputing import Again, can_recompute, recomputing
from alloytune.models.roles import Roles
from alloytune.models.unpadded import unpadded
from alloytune.models.weights import Weights, copy_weights, named_weights
from alloytune.recipe.types.choosing import ByTurns, Mixout
from alloytune.recipe.types.optimizer import Clip, read_optimizer
from alloytune.recipe.types.stage import Stage
from alloytune.tasks.abilities import Undivided
from alloytune.train.clip import Clip as ClipGradients
from alloytune.train.clip import make_clip
from alloytune.train.loop import Loss
from alloytune.train.moving import Group, Moving, Role, make_optimizer
from alloytune.train.on_cpu import training_ops
from alloytune.train.optimizers import Optimizer, OptimizerSettings, require_installed
from alloytune.train.regularize import can_drop, dropout_at, drops, make_loss, with_mixout
from alloytune.train.row_adamw import lookup_tables
from alloytune.train.schedule import Schedule, make_schedule


def layer_shares(decay: float, roles: Roles) -> dict[str, float]:
    """Give what the rate is multiplied with by depth: `decay` in the top layer, and again in every layer below.

    As in BEiT (Bao et al. 2022): of L layers, the top one is at decay^1, the embeddings are at decay^(L+1).
    """
    heights = [roles.members.get("embeddings", frozenset()), *roles.whole_layers]
    return {name: decay ** (len(heights) - height) for height, names in enumerate(heights) for name in names}


def role_of(name: str, roles: Roles) -> Role:
    """Give the one role by which a weight is clipped, and by which some optimizers know what they can move."""
    order: tuple[Role, ...] = ("adapter", "head", "embeddings", "layers")
    return next((role for role in order if name in roles.members.get(role, ())), "other")


def optimizer_settings(
    stage: Stage, where: str, groups: Sequence[Group], roles: Roles, *, is_sure: bool = True
) -> OptimizerSettings:
    """Translate a stage's `optimizer`; raises InputError when it is not installed, or could move nothing itself.

    Where a choice has been made (not `is_sure`) it may come out so that AdamW moves all.
    """
    settings = OptimizerSettings(*read_optimizer(stage.optimizer))
    require_installed(settings, f"{where}.optimizer")
    if is_sure and not any(settings.moves(group.role, roles.shapes[name]) for group in groups for name in group.names):
        rank = settings.options.get("rank")
        large = "" if rank is None else f" whose sides are larger than rank {rank}"
        raise InputError(
            f"{where}.optimizer",
            f"{settings.kind} is for matrices inside the body{large}, and none moves in this stage",
            "use adamw" if rank is None else "lower the rank, or use adamw",
        )
    return settings


def make_stage_schedule(stage: Stage) -> Schedule:
    """Translate a stage's `schedule` and `warmup`."""
    kind = stage.schedule or ("constant" if read_optimizer(stage.optimizer)[0] == "schedule_free" else "linear")
    warmup = stage.warmup if stage.warmup is not None else 0.1 if kind == "slanted" else 0.06
    return make_schedule(kind, warmup)


def make_stage_clip(stage: Stage) -> ClipGradients:
    """Translate a stage's `clip`."""
    return make_clip(stage.clip.norm, stage.clip.per) if isinstance(stage.clip, Clip) else make_clip(stage.clip)


def make_stage_optimizer(session: Session, number: int, moving: Moving) -> Optimizer:
    """Make a stage's optimizer. Before its first update, as `decay_to: stage-start` holds to the weights of now."""
    stage = session.recipe.stages[number]
    decaying = [group for group in moving.groups if group.weight_decay]
    anchors = {} if stage.decay_to == "zero" else _values(session, stage.decay_to, decaying)
    return make_optimizer(moving, named_weights(session.state.model), anchors, row_tables(session, number))


def row_tables(session: Session, number: int) -> frozenset[str]:
    """Name the tables of embeddings of which a stage changes those rows alone that its texts look up.

    Processors alone update them by rows: where memory is fast there is less to gain, and not all devices can.
    """
    stage = session.recipe.stages[number]
    by_rows = (
        session.machine.device.type == "cpu"
        and not isinstance(stage.train, ByTurns)  # whose masks may hold single elements
        and _mixout(stage) is None  # which looks up in a mixture of two tables
        and (stage.joint is None or stage.joint.mode == "update")  # others compare or swap whole gradients
    )
    return lookup_tables(session.state.model) if by_rows else frozenset()


def make_stage_loss(session: Session, number: int, moving: Moving) -> Loss:
    """Translate a stage's regularisers into its loss. Before its first update, for the sake of `mixout`."""
    stage = session.recipe.stages[number]
    loss = make_loss(session.task, label_smoothing=stage.label_smoothing, r_drop=stage.r_drop)
    mixout = _mixout(stage)
    if mixout is None:
        return loss
    mixed = _mixed(moving, session.state.roles())
    return with_mixout(loss, _values(session, mixout.to, mixed), mixout.share)


@contextmanager
def in_training_form(session: Session, number: int) -> Iterator[None]:
    """Give the model the dropout that a stage trains with, and have it computed as fast as it bears.

    A loss that needs the whole update, in several passes, calls the model again while torch computes the gradient,
    outside of any context.
    """
    model, again = session.state.model, list[Again]()
    with ExitStack() as form:
        form.enter_context(dropout_at(model, session.recipe.stages[number].dropout))
        if not isinstance(session.task, Undivided) or session.recipe.micro_batch is None:
            ops = training_ops(session.machine.device)
            form.enter_context(in_calls(model, ops))
            form.enter_context(trained_plainly(model))
            again = [lambda: ops, form.enter_context(unpadded(model, session.state.roles()))]
        if session.recipe.activation_checkpointing:
            form.enter_context(recomputing(model, again))
        yield


def check_recomputing(session: Session) -> None:
    """Raise InputError where layers are to compute again what they do not keep, and the model's cannot."""
    if session.recipe.activation_checkpointing and not can_recompute(session.state.model):
        what = f"the layers of {type(session.state.model).__name__} cannot compute again what they do not keep"
        raise InputError("activation_checkpointing", what, "remove it; micro_batch saves memory, too")


def check_regularisers(session: Session, number: int, moving: Moving) -> None:
    """Raise InputError where a stage's dropout finds no place, mixout no weight, or R-Drop nothing random."""
    stage, where, model = session.recipe.stages[number], f"stages[{number}]", session.state.model
    if stage.dropout is not None and not can_drop(model):
        raise InputError(f"{where}.dropout", "this model has no place for dropout", "remove it; mixout needs none")
    if _mixout(stage) and not _mixed(moving, session.state.roles()):
        raise InputError(f"{where}.mixout", "no pretrained matrix moves in this stage", "remove it")
    is_random = drops(model) if stage.dropout is None else stage.dropout > 0
    if stage.r_drop and not is_random and not _mixout(stage):
        raise InputError(f"{where}.r_drop", "nothing is random, so both passes are the same", "give dropout: 0.1, too")


def _mixout(stage: Stage) -> Mixout | None:
    mixout = Mixout(share=stage.mixout) if isinstance(stage.mixout, float) else stage.mixout
    return mixout if mixout and mixout.share else None


def _mixed(moving: Moving, roles: Roles) -> list[Group]:
    """Give the moving pretrained matrices."""
    pretrained = [group for group in moving.groups if group.role not in ("head", "adapter")]
    matrices = [[name for name in group.names if len(roles.shapes[name]) > 1] for group in pretrained]
    return [replace(group, names=tuple(names)) for group, names in zip(pretrained, matrices, strict=True) if names]


def _values(session: Session, when: str, groups: Iterable[Group]) -> Weights:
    """Give the values that weights have in the model's files, or as they are now.

    They are found again whenever a stage begins, on a resume too, so that no checkpoint holds them. Head and adapter
    have no pretrained values.
    """
    if when == "pretrained":
        groups = [group for group in groups if group.role not in ("head", "adapter")]
        pretrained = session.pretrained_weights()
        values = {name: pretrained[name] for group in groups for name in group.names}
    else:
        values = copy_weights(session.state.model, (name for group in groups for name in group.names))
    return {name: value.to(session.machine.device) for name, value in values.items()}
