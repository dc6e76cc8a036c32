"""Rules on adapters, within a stage and across stages: what may be attached, merged, dropped and named in each.

Stages can be rolled back or left out, so there are several histories that a run may take. They are followed side by
side: each is the adapters that stand after the stages so far. A stage must be right in all of them.
"""

import keyword
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from alloytune.expression import Named, parse, parts_in, roles_in
from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.adapter import KINDS, Attach
from alloytune.recipe.types.ending import Otherwise
from alloytune.recipe.types.stage import Stage

Standing = frozenset[tuple[int, int]]  # stage, and which of its adapters
_WHY = {"bottleneck": "it is not linear", "prefix": "it is keys and values of its own"}


@dataclass(frozen=True)
class History:
    """One way in which a run may go: the adapters that are attached, and whether the next stage is left out."""

    standing: Standing = frozenset()
    skips: bool = False


def check_adapters(stages: list[Stage]) -> Iterator[Mistake]:
    """Find stages that attach, merge, drop or train adapters which are not, or may not be, as they need them."""
    planned: Standing = frozenset()  # what stands if every stage is kept
    for index, (stage, running) in enumerate(zip(stages, standings_before(stages), strict=True)):
        keys = ("attach", "merge", "drop", "accept")
        about = tuple(("stages", before, key) for before in range(index) for key in keys)
        own: tuple[KeyPath, ...] = tuple(("stages", index, key) for key in keys[:3])
        mistakes = list(_check_entries(stage, index)) or _Stage(stages, index).check(running, planned)
        for mistake in mistakes:
            yield Mistake(mistake.path, mistake.message, mistake.at_key, about=(*about, *own))
        planned = _standing_after(stages, index, planned)
    yield from _check_idle(stages)


def _check_idle(stages: list[Stage]) -> Iterator[Mistake]:
    """An adapter moves in some stage while it stands, or it changes nothing; one of a folder is trained already."""
    standing: Standing = frozenset()
    moving: set[tuple[int, int]] = set()
    for index, stage in enumerate(stages):
        standing = _standing_after(stages, index, standing)
        moving |= {place for place in standing if _may_move(stage, _name(stages, place))}
    for index, stage in enumerate(stages):
        for number, attach in enumerate(stage.attaches):
            if (index, number) not in moving and len(attach.kinds) == 1 and attach.folder is None:
                message = f"no stage trains the adapter {attach.called!r}, which so changes nothing"
                remedy = "add `| adapter` to `train`, or remove it"
                about = (("stages", index, "train"),)
                yield Mistake(_entry_path(stage, index, number), f"{message}; {remedy}", at_key=True, about=about)


def _may_move(stage: Stage, name: str) -> bool:
    """Tell whether a stage may train an adapter of this name, if it is attached."""
    parts = [part for text in stage.trains.values() for part in parts_in(parse(text))]
    named = {role for text in stage.trains.values() for role in _adapters_in(text)}
    by_role = not named.isdisjoint({"adapter", "adapter.layers", f"adapter.{name}"})
    return by_role or any(isinstance(part, Named) for part in parts)


def standings_before(stages: Sequence[Stage]) -> list[set[Standing]]:
    """Give, for every stage, the sets of adapters that may be attached when it begins."""
    return [{history.standing for history in histories if not history.skips} for histories in _histories(stages)]


def standings_after_leaving(stages: Sequence[Stage], index: int, standings: Set[Standing]) -> set[Standing]:
    """Give what is left of the sets of adapters when a stage has merged and dropped."""
    return {standing - _leaving(stages, index, standing) for standing in standings}


def standings_then_and_now(stages: Sequence[Stage], earlier: int | None, index: int) -> set[tuple[Standing, Standing]]:
    """Give what may be attached after an earlier stage and, in the same history of a run, in this one.

    `earlier` is None for the model as it came.
    """
    starts = {History()}
    if earlier is not None:
        before = _histories(stages)[earlier]
        starts = {after for history in before for after in _histories_after(stages, earlier, history)}
    first = 0 if earlier is None else earlier + 1
    return {
        (start.standing, _standing_after(stages, index, history.standing))
        for start in starts
        for history in _histories(stages[: index + 1], {start}, first)[-1]
        if not history.skips
    }


def _histories(
    stages: Sequence[Stage], histories: Set[History] = frozenset({History()}), first: int = 0
) -> list[Set[History]]:
    """Give the histories that a run may be on when each of the stages from `first` on begins."""
    found: list[Set[History]] = []
    for index in range(first, len(stages)):
        found.append(histories)
        histories = {after for history in histories for after in _histories_after(stages, index, history)}
    return found


def _standing_after(stages: Sequence[Stage], index: int, standing: Standing) -> Standing:
    """Give the adapters that are attached when a stage was kept."""
    own = frozenset((index, number) for number in range(len(stages[index].attaches)))
    return (standing - _leaving(stages, index, standing)) | own


def _histories_after(stages: Sequence[Stage], index: int, history: History) -> set[History]:
    """Give the histories that a run may be on after a stage."""
    stage = stages[index]
    if history.skips:
        return {History(history.standing)}
    kept = _standing_after(stages, index, history.standing)
    if stage.accept is None:
        return {History(kept)}
    match stage.otherwise:
        case "stop":
            return {History(kept)}
        case "skip":
            return {History(kept), History(history.standing, skips=True)}
        case "rollback" | "retry" | Otherwise():
            return {History(kept), History(history.standing)}


def _leaving(stages: Sequence[Stage], index: int, standing: Standing) -> Standing:
    """Give the adapters that a stage merges or drops."""
    chosen = {stages[index].merge, stages[index].drop}
    return frozenset(place for place in standing if True in chosen or _name(stages, place) in chosen)


def _name(stages: Sequence[Stage], place: tuple[int, int]) -> str:
    attach = _attach(stages, place)
    return attach.called if attach.kinds else ""


def _attach(stages: Sequence[Stage], place: tuple[int, int]) -> Attach:
    return stages[place[0]].attaches[place[1]]


# Within one entry of `attach`.


def _check_entries(stage: Stage, index: int) -> Iterator[Mistake]:
    """Every entry names one kind, a name of its own, and pretrained layers."""
    names: list[str] = []
    for number, attach in enumerate(stage.attaches):
        path = _entry_path(stage, index, number)
        about = tuple((*path, kind) for kind in KINDS)
        if not attach.kinds:
            message = "attach names no adapter; write {lora: {rank: 8}} or {bottleneck: {}}"
            yield Mistake(path, message, about=about)
            continue
        if len(attach.kinds) > 1:
            both = " and ".join(attach.kinds)
            listed = ", ".join(f"{{{kind}: ...}}" for kind in attach.kinds)
            message = f"{both} cannot stand in one mapping; write a list, [{listed}], or keep one of them"
            yield Mistake(path, message, about=about)
            continue
        if attach.called in names:
            message = f"two adapters are called {attach.called!r}; give one of them another `name`"
            yield Mistake(path, message)
        if keyword.iskeyword(attach.called) or attach.called == "layers":
            message = f"{attach.called!r} cannot be named in a selection; choose another word"
            yield Mistake((*path, "name"), message)
        names.append(attach.called)
        if attach.adalora is not None and attach.adalora.start < attach.adalora.rank:
            message = f"ranks fall from start ({attach.adalora.start}), which is below rank ({attach.adalora.rank})"
            yield Mistake((*path, "adalora", "rank"), f"{message}; raise start, or lower rank")
        if _adapters_in(attach.on):
            message = f"{attach.on!r} names the adapter itself; name layers, such as 'attention | mlp'"
            yield Mistake((*path, attach.kinds[0], "on"), message)
        if attach.stack and attach.lora is not None and attach.lora.dora:
            message = "DoRA measures the base weights alone and cannot stand on another adapter; remove one of the two"
            yield Mistake((*path, "stack"), message)


def _entry_path(stage: Stage, index: int, number: int) -> KeyPath:
    own = () if isinstance(stage.attach, Attach) else (number,)
    return ("stages", index, "attach", *own)


def _adapters_in(text: str) -> list[str]:
    """Give the adapters that a selection names, as `adapter` or `adapter.NAME`."""
    return [role for role in roles_in(parse(text)) if role.partition(".")[0] == "adapter"]


# One stage among the others.


class _Stage:
    """One stage, checked against the adapters that may stand when it begins."""

    def __init__(self, stages: Sequence[Stage], index: int) -> None:
        self.stages = stages
        self.index = index
        self.stage = stages[index]

    def check(self, before: set[Standing], planned: Standing) -> Iterator[Mistake]:
        """Find what is wrong in one of the histories; `planned` is what stands before it if all stages are kept."""
        for verb in ("merge", "drop"):
            if getattr(self.stage, verb):
                yield from self._check_leaving(verb, before)
        merge, drop = self.stage.merge, self.stage.drop
        if merge and drop and (True in (merge, drop) or merge == drop):
            message = (
                "an adapter cannot be merged and dropped at once; name one adapter for each, or remove one of them"
            )
            yield Mistake(("stages", self.index, "drop"), message)
        if self.stage.reinit and _adapters_in(self.stage.reinit):
            message = f"{self.stage.reinit!r} names an adapter, which begins anew by `drop` and `attach`; take it out"
            yield Mistake(("stages", self.index, "reinit"), message)
        remaining = {standing - _leaving(self.stages, self.index, standing) for standing in before}
        yield from self._check_room(remaining, planned)
        yield from self._check_company(remaining)
        after = {_standing_after(self.stages, self.index, standing) for standing in before}
        named: list[tuple[KeyPath, str]] = [*self.stage.trains.items()]
        named += [(("rates", text), text) for text in self.stage.rates]
        if self.stage.combine is not None and self.stage.combine.of is not None:
            named.append((("combine", "of"), self.stage.combine.of))
        for key, text in named:
            for role in _adapters_in(text):
                yield from self._check_role(role, after, ("stages", self.index, *key))

    def _check_leaving(self, verb: Literal["merge", "drop"], before: set[Standing]) -> Iterator[Mistake]:
        """What is to leave must be there in some history: after a rollback there may be nothing to do."""
        path = ("stages", self.index, verb)
        wanted = getattr(self.stage, verb)
        places = sorted(frozenset[tuple[int, int]]().union(*before))
        chosen = [place for place in places if wanted is True or _name(self.stages, place) == wanted]
        done = "merged" if verb == "merge" else "dropped"
        if not chosen:
            what = "nothing is attached" if wanted is True else f"no adapter {wanted!r} is attached"
            there = ", ".join(sorted({_name(self.stages, place) for place in places}))
            remedy = f"there is {there}" if there else f"attach in an earlier stage, or remove `{verb}`"
            yield Mistake(path, f"{what} that could be {done}; {remedy}")
        for place in chosen:
            attach, by = _attach(self.stages, place), self.stages[place[0]].name
            if verb == "merge" and not attach.mergeable:
                message = (
                    f"the {attach.kinds[0]} adapter of stage {by!r} cannot be merged: {_WHY[attach.kinds[0]]}, so no "
                    "weight can hold it; remove `merge`, or use lora"
                )
                yield Mistake(path, message)
            if verb == "merge" and attach.stack and len(chosen) < len(places):
                message = (
                    f"the adapter {attach.called!r} of stage {by!r} may stand on another (stack), which has to be "
                    "merged before it; write `merge: true`"
                )
                yield Mistake(path, message)
            if verb == "drop" and attach.lora is not None and attach.lora.pissa:
                message = (
                    f"the adapter {attach.called!r} of stage {by!r} began by taking its start out of the base weights "
                    "(pissa), which lack it when it is dropped; write `merge` instead"
                )
                yield Mistake(path, message)

    def _check_room(self, remaining: set[Standing], planned: Standing) -> Iterator[Mistake]:
        """An adapter's name is its own while it stands, and no layer that it needs is taken in only some histories."""
        for number, attach in enumerate(self.stage.attaches):
            for place in sorted(frozenset[tuple[int, int]]().union(*remaining)):
                other = _attach(self.stages, place)
                same_name = _name(self.stages, place) == attach.called
                if not same_name and (place in planned or attach.stack):
                    continue
                may = "is still" if all(place in standing for standing in remaining) else "may still be"
                fold = "add `merge: true` to this stage to fold it in first, or " if other.mergeable else ""
                remedy = "give this one another `name`" if same_name else "write `stack: true`"
                whose = f"{_name(self.stages, place)!r} of stage {self.stages[place[0]].name!r}"
                message = f"the adapter {whose} {may} attached; {fold}{remedy}"
                yield Mistake(_entry_path(self.stage, self.index, number), message, at_key=True)

    def _check_company(self, remaining: set[Standing]) -> Iterator[Mistake]:
        """The matrices that VeRA shares are its tuner's, which nothing loads beside other adapters."""
        others = frozenset[tuple[int, int]]().union(*remaining)
        for number, attach in enumerate(self.stage.attaches):
            beside = [_attach(self.stages, place) for place in others]
            beside += [other for place, other in enumerate(self.stage.attaches) if place != number]
            if beside and (attach.vera is not None or any(other.vera is not None for other in beside)):
                message = "vera stands beside no other adapter; attach it alone, or merge the other one first"
                yield Mistake(_entry_path(self.stage, self.index, number), message)
                return

    def _check_role(self, role: str, after: set[Standing], path: KeyPath) -> Iterator[Mistake]:
        """An adapter that is named must be there in every history."""
        at_key = path[-2] == "rates"
        name = role.partition(".")[2].removeprefix("layers")
        fitting = [{place for place in standing if name in ("", _name(self.stages, place))} for standing in after]
        places = sorted(set[tuple[int, int]]().union(*fitting))
        if not places:
            standing = sorted({_name(self.stages, place) for each in after for place in each})
            there = f"there is {', '.join(standing)}; " if standing else ""
            remedy = "add `attach: {lora: {rank: 8}}` to this stage, or take `adapter` out"
            message = f"'{role}' is named, but none is attached here; {there}{remedy}"
            yield Mistake(path, message, at_key)
        elif not all(fitting):
            can_merge = all(_attach(self.stages, place).mergeable for place in places)
            remedy = "attach in this stage, after `merge: true`, or take" if can_merge else "take"
            stages = " or ".join(dict.fromkeys(repr(self.stages[place[0]].name) for place in places))
            message = (
                f"'{role}' is named, but that of stage {stages} may be absent, as a stage before can be rolled back or "
                f"left out; {remedy} `accept` out of the earlier one"
            )
            yield Mistake(path, message, at_key)
