"""Stages that combine, repeat and are judged by standard errors: which weights they leave, and that a resume agrees."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import alloytune
import tiny
from alloytune import run
from alloytune.build.session import Session
from alloytune.errors import InputError, Interrupted
from alloytune.models.combine import GRID, mean, mix
from alloytune.models.weights import Weights
from alloytune.recipe.read import recipe_read
from alloytune.record.folder import RunFolder
from alloytune.tasks.task import Scores
from alloytune.train.stage import Progress
from alloytune.watch import Watcher
from flows.test_resume import MEASURED, weights
from properties.carried_out import Witness, begin

TABLE = tiny.make_table(120)
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def stage(name: str, train: str | None = None, **more: object) -> dict[str, object]:
    training = {"train": train, "rate": 3e-3, "until": {"epochs": 1}} if train else {}
    return {"name": name, **training, **more}


def combine(how: str, *named: str, **more: object) -> dict[str, object]:
    return {"how": how, "with": list(named), **more}


class Stops(Watcher):
    """Interrupts a run, at once and with nothing saved: at its nth update, evaluation or combination, or at its end.

    What happens after the last stage is the same for all runs, and looked at elsewhere.
    """

    def __init__(self, number: int = 0) -> None:
        self.left = number

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def on_step(self, step: object, progress: Progress) -> None:
        self.count()

    def on_scores(self, scores: Scores, progress: Progress) -> None:
        self.count()

    def on_combine(self, number: int, stage: object) -> None:
        self.count()

    def on_finish(self, doing: str) -> None:
        raise KeyboardInterrupt


def carry_out(folder: Path, bert: Path, stages: list[dict[str, object]], stops: int = 0) -> RunFolder:
    """Carry all stages out, or stop on the way."""
    data = {"split": {"validation": 0.2, "test": 0}}
    recipe = {"model": str(bert), "data": data, "batch": 8, "seed": 2, "checkpoint": "2 updates", "stages": stages}
    with pytest.raises(Interrupted):
        run.start(recipe_read(recipe), folder, Stops(stops), {"train": TABLE})
    return RunFolder(folder)


def left(folder: RunFolder, stage: str) -> Weights:
    """Give the weights that differ from the pretrained ones after a stage."""
    (found,) = folder.stages.glob(f"*-{stage}/checkpoint/weights.safetensors")
    return load_file(found)


def results(folder: RunFolder) -> dict[str, dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in sorted(folder.stages.glob("*/result.json"))]
    return {result["name"]: result for result in found}


def figures(folder: RunFolder) -> list[dict[str, Any]]:
    """Give what a run wrote about its stages, but for what a clock or the system measured."""
    return [{key: value for key, value in result.items() if key not in MEASURED} for result in results(folder).values()]


def same(one: Weights, two: Weights) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_every_way_of_combining(bert: Path, tmp_path: Path) -> None:
    folder = carry_out(
        tmp_path / "run",
        bert,
        [
            stage("one", "all", evaluate="4 updates"),
            stage("two", "layers[-1:] | head", combine=combine("average", "one", "two")),
            stage("third", combine=combine("interpolate", "pretrained", "two", weight=0.25)),
            stage("soup", combine=combine("greedy-soup", "one", "two", "third")),
            stage("sum", combine=combine("sum-of-changes", "one", "two", weight=[0.5, 0.25])),
            stage("wise", combine=combine("interpolate", "pretrained", "one")),
            stage("back", combine=combine("reset", "pretrained", of="layers[0]")),
            stage("mean", combine=combine("average", "one", "third", "back")),
        ],
    )
    source = load_file(bert / "model.safetensors")
    one, two = left(folder, "one"), left(folder, "two")
    assert torch.equal(two["bert.encoder.layer.0.output.dense.weight"], one["bert.encoder.layer.0.output.dense.weight"])
    assert not torch.equal(two[QUERY], one[QUERY])
    start = {name: source[name] for name in one if name in source}
    assert len(start) > 20

    def body(weights: Weights) -> Weights:
        return {name: weights[name] for name in start}

    assert same(body(left(folder, "third")), mix(start, [body(two)], [0.25]))
    sources = {"one": one, "two": two, "third": left(folder, "third")}
    shares = results(folder)["soup"]["combined"]
    assert same(left(folder, "soup"), mean([sources[name] for name in shares]))
    values = {name: result["scores"]["values"] for name, result in results(folder).items()}
    assert values["soup"]["macro_f1"] >= max(values[name]["macro_f1"] for name in sources)
    assert same(body(left(folder, "sum")), mix(start, [body(one), body(two)], [0.5, 0.25]))
    assert set(results(folder)["wise"]["combined"].values()) <= set(GRID)
    assert values["wise"]["macro_f1"] >= values["one"]["macro_f1"]  # a share of 1 is among those tried
    wise, back = left(folder, "wise"), left(folder, "back")
    moved = {name for name in wise if not torch.equal(wise[name], back[name])}
    assert {name for name in moved if "encoder.layer.0." not in name} == set()
    assert all(torch.equal(back[name], source[name]) for name in start if "encoder.layer.0." in name)
    even = mean([one, left(folder, "third"), back])
    assert all(torch.allclose(weight, even[name], atol=1e-7) for name, weight in left(folder, "mean").items())
    assert (results(folder)["wise"]["updates"], results(folder)["wise"]["trained_parameters"]) == (0, 0)


class Looks(Witness):
    """Keeps the weights of every evaluation."""

    def __init__(self, session: Session, folder: RunFolder) -> None:
        super().__init__(session, folder, None, is_new=True)
        self.seen: list[Weights] = []

    def on_scores(self, scores: Scores, progress: Progress) -> None:
        self.seen.append(self.weights())


@pytest.mark.parametrize("weight", [None, 0.3])
def test_a_running_average(bert: Path, tmp_path: Path, weight: float | None) -> None:
    average = {"how": "running-average"} | ({"weight": weight} if weight else {})
    only = stage("one", "head", until={"updates": 3}, evaluate="1 update", combine=average)
    session = begin({"batch": 8, "stages": [only]}, bert)
    folder = RunFolder(tmp_path)
    looks = Looks(session, folder)
    run._train(folder, session, looks)
    first, second, third = looks.seen
    shares = [0.3, 0.3] if weight else [1 / 2, 1 / 3]
    expected = mix(mix(first, [second], shares[:1]), [third], shares[1:])
    assert not same(first, third)
    assert all(torch.allclose(value, expected[name]) for name, value in looks.after["one"].items())


def test_each_new_try_is_slower(bert: Path, tmp_path: Path) -> None:
    retry = {"retry": {"rate": "x0.3", "times": 2}}
    only = stage("one", "head", until={"updates": 1}, accept={"gain": 9}, otherwise=retry)
    folder = carry_out(tmp_path / "run", bert, [only])
    result = results(folder)["one"]
    assert (result["decision"], result["tries"]) == ("rolled back", 3)
    assert result["rates"] == pytest.approx([3e-3 * 0.3**2])
    steps = [row["rate"] for row in folder.stage(0, "one").rows("steps")]
    assert [rate / steps[0] for rate in steps] == pytest.approx([1, 0.3, 0.09])


def test_a_skip_leaves_out_the_next_stage_alone(bert: Path, tmp_path: Path) -> None:
    short = {"until": {"updates": 1}}
    first = stage("one", "head", accept={"gain": 9}, otherwise="skip", **short)
    folder = carry_out(tmp_path / "run", bert, [first, stage("two", "head", **short), stage("three", "head", **short)])
    assert [result["decision"] for result in results(folder).values()] == ["rolled back", "not run", "kept"]


def test_a_combination_that_loses_is_rolled_back_to_the_bit(bert: Path, tmp_path: Path) -> None:
    folder = carry_out(
        tmp_path / "run",
        bert,
        [
            stage("one", "all", rate=5e-3, until={"epochs": 10, "score": 0.9}),
            stage("back", combine=combine("reset", "pretrained", of="all"), accept={"gain": "0.5 SE"}),
            stage("average", combine=combine("average", "one", "back", "average")),
        ],
    )
    assert results(folder)["back"]["decision"] == "rolled back"
    assert "(0.5 SE) or more, got -" in results(folder)["back"]["reason"]
    assert same(left(folder, "one"), left(folder, "average"))


def test_against_the_best_and_in_standard_errors(bert: Path, tmp_path: Path) -> None:
    folder = carry_out(
        tmp_path / "run",
        bert,
        [
            stage("one", "all", rate=5e-3, until={"epochs": 10, "score": 0.9}),
            stage("worse", combine=combine("reset", "pretrained", of="all")),
            stage("again", "head", accept={"against": "best", "gain": "1 SE"}),
            stage("near", "head", accept={"gain": "-1 SE", "metric": "accuracy"}),
        ],
    )
    found = results(folder)
    assert [result["decision"] for result in found.values()] == ["kept", "kept", "rolled back", "kept"]
    assert "on stage one" in found["again"]["reason"]
    assert len(found["one"]["scores"]["figures"]) == folder.read("data/audit.json")["kept"]["validation"]


@pytest.mark.slow
def test_a_run_that_is_stopped_combines_the_same(bert: Path, tmp_path: Path) -> None:
    rounds = [
        stage("lora", "adapter | head", attach={"lora": {"rank": 2}}, until={"flops": 4e6}, accept={"gain": "0 SE"}),
        stage(
            "fold",
            merge=True,
            combine=combine("interpolate", "one", "fold"),
        ),
    ]
    stages = [
        stage("one", "all", evaluate="3 updates", combine={"how": "running-average"}),
        {"repeat": {"times": 2, "stages": rounds}},
        stage("last", "head", combine={"how": "running-average", "weight": 0.3}),
    ]
    alone = carry_out(tmp_path / "alone", bert, stages)
    assert [row["update"] for row in alone.stage(0, "one").rows("scores")] == [3, 6, 9, 12]
    by_flops = results(alone)["lora-1"]["updates"]
    assert 1 < by_flops < 12
    # after a checkpoint of the running average, and before operations end a stage
    for number in (6, 17 + by_flops - 1):
        stopped = carry_out(tmp_path / f"stopped-{number}", bert, stages, number)
        assert len(results(stopped)) < len(results(alone))
        with pytest.raises(Interrupted):
            run.resume(stopped.path, Stops())
        assert weights(stopped.path) == weights(alone.path)
        assert figures(stopped) == figures(alone)


def test_a_selection_that_a_rollback_leaves_empty_is_refused_at_once(bert: Path, tmp_path: Path) -> None:
    stages = [
        stage("lora", "adapter | head", attach={"lora": {"rank": 2}}, accept={"gain": 0}),
        stage("more", 'name("*lora_A*")'),
    ]
    with pytest.raises(InputError, match=r"stages\[1\].train: .*lora_A.* matches nothing"):
        carry_out(tmp_path / "run", bert, stages)
    assert not (tmp_path / "run").exists()
    stages[0].pop("accept")
    carry_out(tmp_path / "run", bert, stages)


def test_check_knows_stages_that_do_not_train(bert: Path, tmp_path: Path) -> None:
    from alloytune.build.data import build_data_settings
    from alloytune.build.session import build_session
    from alloytune.data.prepare import prepare
    from alloytune.estimate import estimate

    recipe = alloytune.Recipe.model_validate(
        {
            "model": str(bert),
            "batch": 8,
            "stages": [
                stage("one", "all", until={"flops": 3e7}),
                stage("wise", combine=combine("interpolate", "pretrained", "one")),
            ],
        }
    )
    session = build_session(recipe, prepare(build_data_settings(recipe), TABLE))
    one, wise = estimate(session).stages
    assert one.num_updates is not None
    assert one.num_updates > 1
    assert (wise.num_updates, wise.seconds, wise.num_trained, wise.num_evaluations) == (0, 0, 0, 12)
