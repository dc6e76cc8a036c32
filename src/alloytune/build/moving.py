"""From a stage to what moves in it: by which rate, decay and optimizer."""

from math import prod

from transformers import PreTrainedConfig

from alloytune.build.joint import constant_factors, find_parts
from alloytune.build.pace import layer_shares, optimizer_settings, role_of
from alloytune.build.selections import scale, select_turn
from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.models.roles import Roles
from alloytune.models.state import ModelState
from alloytune.rates import Family, Kind, adapter_rate, auto_rate
from alloytune.recipe.types.choosing import Scaled
from alloytune.recipe.types.stage import Stage
from alloytune.selected import Selected
from alloytune.selection import REHEARSAL, Chooser, resolve
from alloytune.tasks.objectives import objective_in
from alloytune.train.moving import Group, Moving, Part, Role


def family_of(config: PreTrainedConfig) -> Family:
    """Tell by which family's rates a model is usually trained; one of two sides goes as encoders do, but for T5."""
    if "t5" in config.model_type:
        return "t5"
    return "decoder" if objective_in(config) == "next" else "encoder"


def build_moving(session: Session, number: int, chooser: Chooser | None = None) -> Moving:
    """Translate a stage's `train`, its rates and its optimizer, once its adapter is attached.

    Where weights take turns, it holds all that may ever move.
    `chooser` makes the choices of its selections, and knows the score that a rate is scaled by. Settings for weights
    that never move are refused; a choice may well leave them out, and has been rehearsed with all that it may choose.
    """
    stage = session.recipe.stages[number]
    if stage.train is None:
        return Moving(())
    where = f"stages[{number}]"
    roles = session.state.roles()
    selected = _selected(session, number, roles, chooser)
    own_rates = [
        (text, resolve(text, roles, f"{where}.rates.{text}", chooser), rate) for text, rate in stage.rates.items()
    ]
    is_sure = chooser in (None, REHEARSAL)
    for text, names, _ in own_rates:
        if is_sure and not names & selected.names:
            raise InputError(
                f"{where}.rates", f"nothing of {text!r} moves in this stage", "drop it, or add it to train"
            )
    usual = _auto_rates(session, number, roles, selected)
    starts = usual if scale(stage) is None else _auto_rates(session, number, roles, selected, is_scaled=True)
    shares = layer_shares(stage.layer_decay, roles)
    if is_sure and stage.layer_decay != 1 and selected.names.isdisjoint(shares):
        raise InputError(f"{where}.layer_decay", "no layer moves in this stage", "drop it, or add layers to train")
    common = stage.rate.largest if isinstance(stage.rate, Scaled) else stage.rate
    factors = _factors(stage, roles, selected, chooser)
    pluses = session.state.pluses()
    parts = find_parts(stage, where, roles, selected.names, chooser)
    weights = constant_factors(stage)
    undecayed = _undecayed(stage, roles)
    groups: dict[tuple[float, float, Role, float | None, Part | None], list[str]] = {}
    for name in (name for name in roles.shapes if name in selected.names):
        own = next((rate for _, names, rate in own_rates if name in names), None)
        given = common if own is None else own
        auto = starts[name] if own is None else usual[name]
        start, rate = (auto, auto) if given == "auto" else (None, given)
        rate *= pluses.get(name, 1.0)
        rate *= factors.get(name, 1.0) * shares.get(name, 1.0) if own is None else 1.0
        part = parts.get(name)
        rate *= weights.get(part, 1.0) if part else 1.0
        decay = 0.0 if name in undecayed or len(roles.shapes[name]) < 2 else stage.weight_decay
        groups.setdefault((rate, decay, role_of(name, roles), start, part), []).append(name)
    made = tuple(Group(tuple(names), *shared) for shared, names in groups.items())
    return Moving(made, optimizer_settings(stage, where, made, roles, is_sure=is_sure), selected.masks)


def _undecayed(stage: Stage, roles: Roles) -> frozenset[str]:
    """Give what never decays; embeddings not to zero, as rows that no text of the training names would shrink, too."""
    kept = ["norm", "bias"] if stage.decay_to != "zero" else ["norm", "bias", "embeddings"]
    return frozenset[str]().union(*(roles.members.get(role, frozenset()) for role in kept))


def _selected(session: Session, number: int, roles: Roles, chooser: Chooser | None) -> Selected:
    """Give all that may move in a stage; raises InputError where what takes turns moves anyhow."""
    always, chosen = select_turn(session, number, roles, chooser, REHEARSAL)
    if chosen and not chosen - always:
        raise InputError(
            f"stages[{number}].train.rotate.choose",
            "all that may be chosen moves in every turn anyhow",
            "take it out of `always`, or choose `of` something else",
        )
    return always | chosen


def _factors(stage: Stage, roles: Roles, selected: Selected, chooser: Chooser | None) -> dict[str, float]:
    """Give what the rate of each pretrained tensor is multiplied with: its score / the largest of those that move.

    The head and adapters are not compared with pretrained weights (a fresh head leads any such list) and keep the whole
    rate, as does a tensor that has no score.
    """
    score = scale(stage)
    if score is None or chooser is None:
        return {}
    fresh = roles.members["head"] | roles.members.get("adapter", frozenset())
    found = {name: value for name, value in chooser.scores(score).items() if name in selected.names - fresh}
    largest = max(found.values(), default=0.0)
    return {name: value / largest for name, value in found.items()} if largest > 0 else {}


def _auto_rates(
    session: Session, number: int, roles: Roles, selected: Selected, *, is_scaled: bool = False
) -> dict[str, float]:
    """Give the starting rate of every weight that moves; a head goes with the slowest beside it.

    A new one has a rate of its own beside adapters and beside most of the body, which move before it has learned else;
    a small part of the body moves fast anyhow. A stage goes on more slowly where an earlier one has moved the body for
    the same task: only its head is new then.
    """
    adapter, head = (roles.members.get(role, frozenset()) for role in ("adapter", "head"))
    body = frozenset[str]().union(*roles.stacks.get("layers", ()))
    num_body = sum(prod(roles.shapes[name]) for name in body)
    pretrained = selected.names - adapter - head
    num_moved = sum(count for name, count in selected.counts(roles.shapes).items() if name in pretrained & body)
    is_flat = all(len(roles.shapes[name]) == 1 for name in pretrained)
    of_part: Kind = "vectors" if is_flat else "full" if 2 * num_moved >= num_body else "partial"
    kind = "scaled" if is_scaled else of_part
    recipe, learning = session.recipe, session.recipe.learning_of(number)
    goes_on = any(recipe.learning_of(n) == learning for n in range(number) if recipe.stages[n].train is not None)
    again = goes_on and bool(pretrained & session.state.touched) and not is_scaled
    of_pretrained = auto_rate(kind, num_body, family_of(session.state.model.config), again=again)
    of_base_moved = goes_on and session.state.base_moved
    of_adapters = {
        name: adapter_rate(attachment.settings.kind, num_body, attachment.settings.reach, again=of_base_moved)
        for attachment in session.state.attachments
        for name in selected.names & roles.members[f"adapter.{attachment.name}"]
    }
    beside = of_pretrained if pretrained else min(of_adapters.values(), default=auto_rate("head", num_body))
    leaves_behind = not goes_on and (of_part == "full" or bool(of_adapters)) and _is_new_readout(session.state, head)
    of_head = max(beside, auto_rate("new head", num_body)) if leaves_behind else beside
    return {name: of_adapters.get(name, of_head if name in head else of_pretrained) for name in selected.names}


def _is_new_readout(state: ModelState, head: frozenset[str]) -> bool:
    """Tell whether a head came from no file and gives a few numbers; one that writes words is as large as a layer."""
    return head <= state.fresh and state.model.get_output_embeddings() is None
