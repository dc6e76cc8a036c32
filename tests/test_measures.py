"""What a stage measures, and what it chooses by it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from alloytune.build.moving import build_moving
from alloytune.build.session import Session
from alloytune.errors import InputError
from alloytune.learning import Learning
from alloytune.machine import find_machine
from alloytune.models.heads import MAIN
from alloytune.models.load import load_tokenizer
from alloytune.models.state import ModelState
from alloytune.models.weights import named_weights
from alloytune.recipe.read import recipe_from
from alloytune.record.folder import StageFolder
from alloytune.selection import resolve, select
from alloytune.stages.measures import Measures, measure_stage, select_of_model
from alloytune.stages.stage import begin_stage
from tiny import TASK


def session(state: ModelState, bert: Path, seed: int = 3, **stage: object) -> Session:
    recipe = recipe_from({"seed": seed, "batch": 8, "stages": [{"name": "only", **stage}]})
    tokenizer = load_tokenizer(str(bert))
    examples = {"train": TASK.encode(tiny.make_table(60), tokenizer, 32).examples}
    machine = find_machine("float32")
    return Session(recipe, str(bert), tokenizer, state, machine, None, {MAIN: Learning(TASK, examples, {})})


def test_only_what_is_asked_for_is_measured(state: ModelState, bert: Path) -> None:
    measures = measure_stage(session(state, bert, train="layers | random(50%, of=head)"), 0)
    assert measures.tensors == measures.masks == {}
    measures = measure_stage(session(state, bert, train="top(rgn, 25%, of=attention) | head"), 0)
    assert measures.tensors.keys() == {"rgn"}
    assert measures.tensors["rgn"].keys() <= resolve("attention", state.roles(), "of")
    assert all(value >= 0 for value in measures.tensors["rgn"].values())
    assert len(measures.tensors["rgn"]) >= 8  # the weights; biases of zero have no relative norm


@pytest.mark.parametrize("score", ["spectral_snr", "lowrank_misfit"])
def test_rates_scaled_by_scores_of_matrices_leave_vectors_whole(state: ModelState, bert: Path, score: str) -> None:
    here = session(state, bert, train="all", rate={"scale": score, "largest": 1e-3})
    measures = measure_stage(here, 0)
    shapes = state.roles().shapes
    assert measures.tensors[score].keys() == {name for name, shape in shapes.items() if len(shape) > 1}
    groups = build_moving(here, 0, measures).groups
    assert {group.rate for group in groups for name in group.names if len(shapes[name]) == 1} == {1e-3}


def test_the_best_tensors_by_score_are_chosen(state: ModelState, bert: Path) -> None:
    here = session(state, bert, train="top(gradient, 3) | head")
    measures = measure_stage(here, 0)
    chosen = build_moving(here, 0, measures).names - state.head
    ranked = sorted(measures.tensors["gradient"], key=lambda name: -measures.tensors["gradient"][name])
    assert chosen == set(ranked[:3])


@pytest.mark.parametrize("train", ["top(fisher, 5%, by=element, of=attention)", "bottom(snr, 50%) | head"])
def test_measures_are_the_same_again_and_after_saving(
    state: ModelState, bert: Path, tmp_path: Path, train: str
) -> None:
    here = session(state, bert, train=train)
    first, second = measure_stage(here, 0), measure_stage(here, 0)
    first.save(tmp_path / "measures")
    loaded = Measures.load(tmp_path / "measures")
    assert loaded is not None
    assert first.tensors == second.tensors == loaded.tensors
    chosen = [select(train, state.roles(), "train", measures) for measures in (first, second, loaded)]
    assert not chosen[0] - chosen[1] | chosen[1] - chosen[0] | chosen[2] - chosen[0] | chosen[0] - chosen[2]


def test_another_seed_measures_other_batches_and_draws_others(state: ModelState, bert: Path) -> None:
    texts = {"train": "top(rgn, 25%) | head"}
    scores = [measure_stage(session(state, bert, seed, **texts), 0).tensors for seed in (3, 4)]
    assert scores[0] != scores[1]
    draws = [select("random(50%, by=element, of=head)", state.roles(), "train", Measures(seed)) for seed in (3, 3, 4)]
    assert not draws[0] - draws[1]
    assert draws[0] - draws[2]


def test_draws(state: ModelState) -> None:
    roles = state.roles()
    drawn = select("random(25%, by=element, of=attention)", roles, "train", Measures(1))
    counts = drawn.counts(roles.shapes)
    attention = select("attention", roles, "train")
    assert not drawn - attention
    assert sum(counts.values()) == round(0.25 * sum(attention.counts(roles.shapes).values()))
    turns = [Measures(1, turn=turn) for turn in range(8)]
    layers = {resolve("random(1, by=layer)", roles, "train", measures) for measures in turns}
    assert layers == set(roles.stacks["layers"])
    both = "random(50%, of=attention) | random(50%, of=mlp)"  # two draws, not one
    assert len({resolve(both, roles, "train", measures) for measures in turns}) > 4


def test_a_cycle_takes_turns(state: ModelState) -> None:
    roles = state.roles()
    turns = [resolve("cycle(by=layer)", roles, "choose", Measures(0, turn=turn)) for turn in range(4)]
    assert turns == [*roles.stacks["layers"], *roles.stacks["layers"]]


def test_the_change_since_pretraining(state: ModelState, bert: Path) -> None:
    weight = named_weights(state.model)["bert.encoder.layer.1.output.dense.weight"]
    with torch.no_grad():
        weight[3, 5] += 1.0
    train = "top(weight_change, 1, by=element) | head"
    measures = measure_stage(session(state, bert, train=train), 0)
    chosen = select("top(weight_change, 1, by=element)", state.roles(), "train", measures)
    assert {name: mask.nonzero().tolist() for name, mask in chosen.masks.items()} == {
        "bert.encoder.layer.1.output.dense.weight": [[3, 5]]
    }
    assert max(measures.tensors["weight_change"].values()) > 0
    assert sum(value > 0 for value in measures.tensors["weight_change"].values()) == 1


def test_the_least_elements_are_chosen(state: ModelState, bert: Path) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    weight = named_weights(state.model)[name]
    with torch.no_grad():
        weight += torch.arange(1.0, weight.numel() + 1).reshape(weight.shape).flip(0, 1)
    least = f'bottom(weight_change, 2, by=element, of=name("{name}"))'
    chosen = select(least, state.roles(), "train", measure_stage(session(state, bert, train=f"{least} | head"), 0))
    rows, columns = weight.shape
    assert chosen.masks[name].nonzero().tolist() == [[rows - 1, columns - 2], [rows - 1, columns - 1]]


def test_what_was_measured_before_is_not_measured_anew(state: ModelState, bert: Path, tmp_path: Path) -> None:
    here = session(state, bert, train="top(gradient, 25%) | head")
    folder = StageFolder(tmp_path / "01-only")
    names = begin_stage(here, 0, folder)[0].names
    weights = named_weights(state.model)
    with torch.no_grad():
        for name in names:
            weights[name].zero_()  # everything would score otherwise now
    assert begin_stage(here, 0, folder)[0].names == names
    (folder.measures / "state.json").write_text("{}")  # damaged
    with pytest.raises(InputError, match="scores are damaged; delete"):
        begin_stage(here, 0, folder)


def test_a_rate_that_follows_a_score(state: ModelState, bert: Path) -> None:
    here = session(
        state, bert, train="all", rate={"scale": "rgn", "largest": 1e-3}, rates={"embeddings": 5e-5}, weight_decay=0.0
    )
    measures = measure_stage(here, 0)
    found = {name: group.rate for group in build_moving(here, 0, measures).groups for name in group.names}
    embeddings = resolve("embeddings", state.roles(), "rates")
    compared = {name: score for name, score in measures.tensors["rgn"].items() if name not in state.head}
    largest = max(compared.values())
    for name, rate in found.items():
        expected = 5e-5 if name in embeddings else 1e-3 * compared.get(name, largest) / largest
        assert rate == pytest.approx(expected)
    assert found["classifier.weight"] == 1e-3
    assert len({round(rate, 12) for rate in found.values()}) > 10


def test_an_adapter_goes_on_what_suits_it_and_the_rest_moves_whole(state: ModelState, bert: Path) -> None:
    """Hybrid placement: the tensors that a low rank suits least are trained whole, the others get LoRA."""
    whole = "top(lowrank_misfit, 2, of=attention)"
    here = session(
        state,
        bert,
        attach={"lora": {"rank": 2, "on": f"attention - {whole}"}},
        train=f"adapter | {whole} | head",
        score={"rank": 2},
    )
    moving, _ = begin_stage(here, 0)
    attention = {name for name in resolve("attention", state.roles(), "on") if name.endswith("weight")}
    adapted = {name.split(".lora_")[0] + ".weight" for name in state.adapter_names}
    moved = moving.names & attention
    assert len(moved) == 2
    assert adapted == attention - moved


def test_selections_of_a_model_without_data(bert: Path) -> None:
    roles, selected = select_of_model(str(bert), "top(spectral_snr, 50%, of=mlp) | random(10%, by=element)", 0)
    assert selected.names <= roles.members["layers"]
    for text, words in {"heed": "did you mean 'head'", "top(rgn, 25%)": "alloytune check"}.items():
        with pytest.raises(InputError, match=words):
            select_of_model(str(bert), text, 0)


def test_layers_share_their_weights(state: ModelState) -> None:
    """A layer that is there once is chosen once."""
    roles = state.roles()
    one = replace(roles, stacks={"layers": roles.stacks["layers"][:1]})
    assert resolve("random(1, by=layer)", one, "train", Measures(0)) == roles.stacks["layers"][0]
