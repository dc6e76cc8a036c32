"""What a selection holds, and when it is refused."""

import re
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from alloytune.errors import InputError
from alloytune.models.load import load_model, load_tokenizer
from alloytune.models.roles import Roles, find_roles
from alloytune.selection import REHEARSAL, nearest, resolve, select
from alloytune.stages.measures import Measures
from models.test_roles import FAMILIES, build
from tiny import TASK


@pytest.fixture(scope="module")
def roles(bert: Path) -> Roles:
    model, _ = load_model(TASK.auto_class, str(bert), load_tokenizer(str(bert)), 0, **TASK.config)
    return find_roles(model)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("layers[-1:]", "layers[1]"),
        ("layers", "layers[0] | layers[1]"),
        ("layers[::-1]", "layers[0:2]"),
        ("all - layers - embeddings - pooler", "head"),
        ("(attention | mlp) & layers[0]", "attention & layers[0] | mlp & layers[0]"),
        ('name("*.pooler.*")', "pooler"),
        ("attention.query", 'name("*.attention.self.query.*")'),
    ],
)
def test_two_ways_to_say_it(roles: Roles, text: str, same: str) -> None:
    assert resolve(text, roles, "train") == resolve(same, roles, "train") != frozenset()


SIZES = {"t5": {"num_layers": 3}, "bart": {"encoder_layers": 3, "decoder_layers": 3}}


@pytest.fixture(scope="module", params=SIZES)
def two_sided(request: pytest.FixtureRequest) -> tuple[str, Roles]:
    """Give a model's name and roles; both of its sides have three layers."""
    family = FAMILIES[request.param]
    return request.param, find_roles(build(replace(family, settings=family.settings | SIZES[request.param])))


@pytest.mark.parametrize(
    ("text", "t5", "bart"),
    [
        ("encoder", r"encoder\.(block|final)", r"encoder\.(layer|embed)"),
        ("decoder", r"decoder\.(block|final)", r"decoder\.(layer|embed)"),
        ("encoder.layers", r"encoder\.block", r"encoder\.layers"),
        ("encoder.layers[-2:]", r"encoder\.block\.[12]", r"encoder\.layers\.[12]"),
        ("decoder.layers[0]", r"decoder\.block\.0", r"decoder\.layers\.0"),
        ("layers[2:4]", r"encoder\.block\.2|decoder\.block\.0", r"encoder\.layers\.2|decoder\.layers\.0"),
        ("encoder.attention", r"encoder.*SelfAttention\.", r"encoder\..*self_attn\."),
        ("decoder.attention", r"decoder.*Attention\.", r"decoder\..*_attn\."),
        ("encoder.attention.value", r"encoder.*\.v\.", r"encoder\..*v_proj"),
        ("decoder.attention.output", r"decoder.*\.o\.", r"decoder\..*out_proj"),
        ("cross", r"EncDec|decoder.*layer\.1\.layer_norm", r"encoder_attn"),
        ("cross.attention", r"EncDecAttention", r"encoder_attn\."),
        ("cross.attention.query", r"EncDecAttention\.q", r"encoder_attn\.q_proj"),
        ("cross.norm", r"decoder.*layer\.1\.layer_norm", r"encoder_attn_layer_norm"),
        ("decoder.attention - cross", r"decoder.*SelfAttention\.", r"decoder.*self_attn\."),
        ("encoder.norm", r"encoder.*layer_norm", r"encoder\..*(layer_norm|layernorm)"),
        ("decoder.mlp", r"decoder.*Dense", r"decoder\..*fc\d"),
        ("encoder.mlp.down", r"encoder.*\.wo\.", r"encoder\..*fc2"),
        ("decoder.layers[-1] & cross.attention", r"decoder\.block\.2.*EncDec", r"decoder\.layers\.2\.encoder_attn\."),
    ],
)
def test_one_side_of_a_model_that_has_two(two_sided: tuple[str, Roles], text: str, t5: str, bart: str) -> None:
    name, roles = two_sided
    pattern = re.compile({"t5": t5, "bart": bart}[name])
    assert resolve(text, roles, "train") == {each for each in roles.shapes if pattern.search(each)} != set()


def test_joins_are_set_operations(roles: Roles) -> None:
    attention, bias = (resolve(text, roles, "train") for text in ("attention", "bias"))
    assert resolve("attention & bias", roles, "train") == attention & bias
    assert resolve("attention | bias", roles, "train") == attention | bias
    assert resolve("attention - bias", roles, "train") == attention - bias


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers[5:]", ["'layers[5:]' matches nothing", "layers[0:2]", "embeddings 2,000"]),
        ("layers[7] | head", ["'layers[7]' matches nothing"]),
        ("cross", ["'cross' matches nothing"]),
        ("adapter", ["'adapter' matches nothing"]),
        ('head | name("*.nowhere")', ['name("*.nowhere")', "matches nothing"]),
        ("head & embeddings", ["parts cancel out", "embeddings 2,000"]),
        ("all | head", ["adds nothing", "embeddings 2,000"]),
        ("head - embeddings", ["takes nothing away", "embeddings 2,000"]),
    ],
)
def test_what_holds_nothing_is_refused(roles: Roles, text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve(text, roles, "stages[0].train")
    assert str(caught.value).startswith("stages[0].train: ")
    for word in words:
        assert word in str(caught.value)


def scored(roles: Roles, score: str, leaders: str) -> Measures:
    """Give measures in which the leaders score 2 and all others 1."""
    first = resolve(leaders, roles, "leaders")
    return Measures(0, {score: {name: 1.0 + (name in first) for name in roles.shapes}})


def share(roles: Roles, names: frozenset[str], of: str) -> float:
    def count(names: frozenset[str]) -> int:
        return sum(prod(roles.shapes[name]) for name in names)

    return count(names) / count(resolve(of, roles, "of"))


def test_a_share_of_tensors_is_one_of_weights(roles: Roles) -> None:
    """All biases lead, but they make no quarter: the largest part is a matrix."""
    measures = scored(roles, "rgn", "bias & layers")
    quarter = resolve("top(rgn, 25%)", roles, "train", measures)
    assert quarter > resolve("bias & layers", roles, "train")
    assert share(roles, quarter, "layers") == pytest.approx(0.25, abs=0.06)
    assert resolve("bottom(rgn, 25%)", roles, "train", measures).isdisjoint(resolve("bias", roles, "train"))


def test_choosing_within_is_not_the_same_as_an_overlap(roles: Roles) -> None:
    measures = scored(roles, "fisher", "mlp")
    attention = resolve("attention", roles, "train")
    within = resolve("top(fisher, 25%, of=attention)", roles, "train", measures)
    assert within < attention
    assert share(roles, within, "attention") == pytest.approx(0.25, abs=0.05)
    with pytest.raises(InputError, match="parts cancel out; choose within one of them"):
        resolve("top(fisher, 25%) & attention", roles, "train", measures)


def test_layers_are_scored_by_the_mean_over_their_weights(roles: Roles) -> None:
    """One small tensor that leads by far does not carry its layer; a large one that leads by little does."""
    scores = dict.fromkeys(roles.shapes, 1.0)
    scores["bert.encoder.layer.0.output.dense.bias"] = 5.0
    scores["bert.encoder.layer.1.output.dense.weight"] = 2.0
    measures = Measures(0, {"snr": scores})
    assert resolve("top(snr, 1, by=layer)", roles, "train", measures) == roles.stacks["layers"][1]
    assert resolve("bottom(snr, 50%, by=layer)", roles, "train", measures) == roles.stacks["layers"][0]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("lowest_layers(50%)", "layers[0]"),
        ("lowest_layers(1)", "layers[0]"),
        ("random(2, by=layer)", "layers"),
        ("random(1, of=head & bias)", "head & bias"),
        ("random(1, by=layer, of=layers[1] & norm)", "layers[1] & norm"),
    ],
)
def test_choices_that_leave_no_choice(roles: Roles, text: str, same: str) -> None:
    assert resolve(text, roles, "train", Measures(0)) == resolve(same, roles, "train")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("random(3, by=layer)", "finds 2 layers to choose from; ask for less"),
        ("random(1, by=layer, of=head)", "finds 0 layers"),
        ("top(spectral_snr, 50%, of=bias)", "finds 0 matrices"),
        ("random(100, by=element, of=head)", "finds 34 elements"),
        ("top(rgn, 25%, of=cross)", "'cross' matches nothing"),
    ],
)
def test_choices_that_cannot_be_made_are_refused_beforehand(roles: Roles, text: str, words: str) -> None:
    for chooser in (None, REHEARSAL):
        with pytest.raises(InputError, match=words):
            select(text, roles, "train", chooser)


def test_a_choice_needs_someone_who_chooses(roles: Roles) -> None:
    with pytest.raises(InputError, match="is a choice, and none is made here"):
        select("top(rgn, 25%)", roles, "train")
    with pytest.raises(InputError, match="selects single elements"):
        resolve("random(5%, by=element)", roles, "on", Measures(0))


@pytest.mark.parametrize(
    ("text", "at_most"),
    [
        ("top(rgn, 25%) | head", "layers | head"),
        ("random(5%, by=element) & attention", "attention"),
        ("all - top(rgn, 25%)", "all"),
        ("(layers | head) - random(50%)", "layers | head"),
    ],
)
def test_a_rehearsal_holds_all_that_may_be_chosen(roles: Roles, text: str, at_most: str) -> None:
    assert resolve(text, roles, "train", REHEARSAL) == resolve(at_most, roles, "train")


def test_what_chance_makes_of_a_part_is_no_mistake(roles: Roles) -> None:
    """`layers | random(...)` always adds nothing, but that is not known of every choice."""
    assert resolve("layers | random(50%)", roles, "train", Measures(0)) == resolve("layers", roles, "train")


@pytest.mark.parametrize(
    ("sizes", "amount", "number"),
    [
        ([1] * 6, 0.25, 2),
        ([1] * 12, 0.25, 3),
        ([1] * 6, 0.01, 1),
        ([1] * 6, 0.99, 6),
        ([5, 1, 1, 1], 0.7, 2),
        ([1, 1, 8], 0.25, 2),
        ([7, 7, 7], 2, 2),
    ],
)
def test_nearest(sizes: list[int], amount: float, number: int) -> None:
    assert nearest(sizes, amount) == number
