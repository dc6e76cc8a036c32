"""Every optimizer: it learns, goes on in the same bytes, and counts the updates of each weight by itself."""

from importlib.util import find_spec
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from alloytune.errors import InputError
from alloytune.recipe.types.optimizer import Optimizer as Words
from alloytune.recipe.types.optimizer import read_optimizer
from alloytune.train.memory import optimizer_state, put_optimizer_state
from alloytune.train.moving import Group, Moving, make_optimizer
from alloytune.train.optimizers import Optimizer, OptimizerSettings, require_installed

# the optimizer as a recipe has it, and a rate at which it learns the small problem below
OPTIMIZERS: dict[str, tuple[Any, float]] = {
    "adamw": ("adamw", 0.02),
    "adamw 8 bits": ({"adamw": {"bits": 8}}, 0.02),
    "sgd": ("sgd", 0.1),
    "nesterov": ({"sgd": {"nesterov": True}}, 0.1),
    "adafactor": ("adafactor", 0.05),
    "lion": ("lion", 0.005),
    "lion 8 bits": ({"lion": {"bits": 8}}, 0.005),
    "muon": ("muon", 0.05),
    "galore": ({"galore": {"rank": 4, "every": 3, "scale": 1.0}}, 0.05),
    "apollo": ({"apollo": {"rank": 4, "every": 3}}, 0.05),
    "apollo-mini": ({"apollo": {"rank": 1, "every": 3, "scale": 4.0, "per": "tensor"}}, 0.05),
    "schedule_free": ("schedule_free", 0.05),
}
ROLES = {
    "first.weight": "layers",
    "inner.weight": "layers",
    "inner.bias": "layers",
    "table": "embeddings",
    "outer.weight": "head",
}
SIZE = 68  # 68 squared is above the 4,096 elements from which bitsandbytes takes 8 bits

INSTALLED = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            ("8 bits" in kind or "apollo" in kind) and not find_spec("bitsandbytes"), reason="the extra `optimizers`"
        ),
    )
    for kind in OPTIMIZERS
]


class Net(nn.Module):
    """Layers and a table that is added to the inputs; `inner` can be left out of a pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(4, SIZE) * 0.1)
        self.first = nn.Linear(SIZE, SIZE, bias=False)
        self.inner = nn.Linear(SIZE, SIZE)
        self.outer = nn.Linear(SIZE, 2, bias=False)

    def forward(self, inputs: Tensor, with_inner: bool = True) -> Tensor:
        hidden = self.first(inputs + self.table.mean(0))
        return self.outer(torch.tanh(self.inner(hidden)) if with_inner else hidden)


def settings(kind: str) -> OptimizerSettings:
    given = OPTIMIZERS[kind][0]
    return OptimizerSettings(*read_optimizer(given if isinstance(given, str) else Words.model_validate(given)))


def make(kind: str, net: Net, names: tuple[str, ...] = tuple(ROLES), **anchors: Tensor) -> Optimizer:
    groups = [
        Group(tuple(name for name in names if ROLES[name] == role), OPTIMIZERS[kind][1], 0.1, role)  # type: ignore[arg-type]
        for role in dict.fromkeys(ROLES[name] for name in names)
    ]
    return make_optimizer(Moving(tuple(groups), settings(kind)), dict(net.named_parameters()), anchors)


def update(net: Net, optimizer: Optimizer, number: int, with_inner: bool = True) -> float:
    """Do one update on examples of its own; a target says whether the first inputs are mostly positive."""
    torch.manual_seed(number)
    inputs = torch.randn(32, SIZE).to(net.table.device)
    optimizer.train()
    targets = (inputs[:, :8].sum(1) > 0).long()
    loss = nn.functional.cross_entropy(net(inputs, with_inner), targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def save_and_load(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return safetensors.torch.load(safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()}))


def bits(net: Net) -> dict[str, bytes]:
    return {name: weight.detach().cpu().numpy().tobytes() for name, weight in net.named_parameters()}


@pytest.mark.parametrize("kind", INSTALLED)
def test_learns_and_moves_everything(kind: str) -> None:
    net = Net()
    before = bits(net)
    optimizer = make(kind, net)
    losses = [update(net, optimizer, number) for number in range(60)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert not {name for name, value in bits(net).items() if value == before[name]}


MADE_OF = {  # the class that moves a hidden matrix, and the shapes of what it remembers of one: 68 by 68
    "adamw": ("AdamW", {"exp_avg": (68, 68), "exp_avg_sq": (68, 68)}),
    "adamw 8 bits": ("AdamW8bit", {"state1": (68, 68), "state2": (68, 68)}),
    "sgd": ("SGD", {"momentum_buffer": (68, 68)}),
    "nesterov": ("SGD", {"momentum_buffer": (68, 68)}),
    "adafactor": ("Adafactor", {"row_var": (68, 1), "col_var": (1, 68)}),
    "lion": ("Lion", {"exp_avg": (68, 68)}),
    "lion 8 bits": ("Lion8bit", {"state1": (68, 68)}),
    "muon": ("Muon", {"momentum_buffer": (68, 68)}),
    "galore": ("GaLore", {"exp_avg": (68, 4), "exp_avg_sq": (68, 4)}),
    "apollo": ("AdamW", {"exp_avg": (68, 4), "exp_avg_sq": (68, 4)}),
    "apollo-mini": ("AdamW", {"exp_avg": (68, 1), "exp_avg_sq": (68, 1)}),
    "schedule_free": ("ScheduleFreeAdamW", {"z": (68, 68), "exp_avg_sq": (68, 68)}),
}


@pytest.mark.parametrize("kind", INSTALLED)
def test_is_the_one_that_was_named(kind: str) -> None:
    """By its class and by what it remembers; what it does not move itself is AdamW's."""
    net = Net()
    optimizer = make(kind, net)
    update(net, optimizer, 0)
    made_by, memory = {}, {}
    for part in optimizer.parts:
        for name, weight in net.named_parameters():
            if weight in part.state:
                made_by[name] = type(part).__name__
                memory[name] = {key: tuple(value.shape) for key, value in part.state[weight].items() if matrix(value)}
    name, shapes = MADE_OF[kind]
    rest = "AdamW" if name in ("Muon", "GaLore") else name
    assert made_by == dict.fromkeys(("first.weight", "inner.weight"), name) | dict.fromkeys(
        ("inner.bias", "table", "outer.weight"), rest
    )
    assert memory["inner.weight"] == shapes


def matrix(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2


def test_lion_goes_by_signs_alone() -> None:
    """Every element moves by the rate; AdamW's first step does so too, its second does not."""
    net = Net()
    optimizer, rate = make("lion", net), OPTIMIZERS["lion"][1]
    for _ in range(2):
        before = net.inner.weight.detach().clone()
        net.inner.weight.grad = torch.randn_like(before)
        optimizer.step()
        moved = net.inner.weight.detach() - (1 - 0.1 * rate) * before
        assert torch.allclose(moved.abs(), torch.full_like(moved, rate), atol=1e-7)


@pytest.mark.parametrize(
    ("words", "entries"),
    [
        ({"adamw": {"beta1": 0.5, "beta2": 0.6}}, {"betas": (0.5, 0.6)}),
        ({"sgd": {"momentum": 0.5, "nesterov": True}}, {"momentum": 0.5, "nesterov": True}),
        ({"adafactor": {"beta2_decay": -0.5}}, {"beta2_decay": -0.5}),
        ({"lion": {"beta1": 0.5, "beta2": 0.6}}, {"betas": (0.5, 0.6)}),
        ({"muon": {"momentum": 0.5, "nesterov": False}}, {"momentum": 0.5, "nesterov": False}),
        ({"galore": {"rank": 3, "every": 7, "scale": 0.5}}, {"rank": 3, "update_proj_gap": 7, "scale": 0.5}),
        ({"schedule_free": {"beta1": 0.5, "beta2": 0.6}}, {"betas": (0.5, 0.6)}),
    ],
)
def test_what_is_set_in_it_is_set(words: dict[str, Any], entries: dict[str, Any]) -> None:
    found = OptimizerSettings(*read_optimizer(Words.model_validate(words)))
    moving = Moving((Group(("inner.weight",), 0.1, 0.0),), found)
    (group,) = make_optimizer(moving, dict(Net().named_parameters())).param_groups
    assert {key: group[key] for key in entries} == entries


@pytest.mark.parametrize("kind", INSTALLED)
def test_a_weight_tells_that_it_has_moved(kind: str) -> None:
    """What is kept of a weight, such as its copy in bfloat16, is told to be stale by the weight's version."""
    net = Net()
    optimizer = make(kind, net)
    before = {name: weight._version for name, weight in net.named_parameters()}
    update(net, optimizer, 0)
    assert not {name for name, weight in net.named_parameters() if weight._version == before[name]}


@pytest.mark.parametrize("kind", INSTALLED)
@pytest.mark.parametrize("killed_after", ["an update", "an evaluation"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_goes_on_in_the_same_bytes(kind: str, killed_after: str, device: str) -> None:
    def live(net: Net, optimizer: Optimizer, start: int, stop: int) -> None:
        for number in range(start, stop):
            update(net, optimizer, number)
            if number % 4 == 3:
                optimizer.eval()

    stop = {"an update": 7, "an evaluation": 8}[killed_after]
    whole = Net().to(device)
    optimizer = make(kind, whole)
    live(whole, optimizer, 0, stop)
    saved = {name: weight.detach().clone() for name, weight in whole.named_parameters()}
    memory = save_and_load(optimizer_state(optimizer, dict(whole.named_parameters())))
    live(whole, optimizer, stop, 13)

    resumed = Net().to(device)
    optimizer = make(kind, resumed)
    resumed.load_state_dict(saved)
    put_optimizer_state(optimizer, dict(resumed.named_parameters()), memory)
    live(resumed, optimizer, stop, 13)
    assert bits(resumed) == bits(whole)
    again = optimizer_state(optimizer, dict(resumed.named_parameters()))
    assert again.keys() >= memory.keys()
    assert set(resumed.state_dict()) == {key.split("|")[0] for key in again}


def test_numbers_are_put_back_without_going_through_a_device() -> None:
    """Some have no float64; `meta`, which holds nothing, gives none of them back."""
    net = Net()
    optimizer = make("schedule_free", net)
    update(net, optimizer, 0)
    memory = optimizer_state(optimizer, dict(net.named_parameters()))
    numbers = {key: value for key, value in memory.items() if key.endswith("|number")}
    elsewhere = Net().to("meta")
    optimizer = make("schedule_free", elsewhere)
    put_optimizer_state(optimizer, dict(elsewhere.named_parameters()), numbers)
    again = optimizer_state(optimizer, dict(elsewhere.named_parameters()))
    assert numbers
    assert all(torch.equal(again[key], value) for key, value in numbers.items())


@pytest.mark.parametrize("kind", INSTALLED)
def test_a_weight_that_joins_later_starts_as_if_it_were_first(kind: str) -> None:
    """Its bias correction counts its own updates, though it stands in the optimizer from the start."""
    late = Net()
    optimizer = make(kind, late)
    for number in range(5):
        update(late, optimizer, number, with_inner=False)
    fresh = Net()
    fresh.load_state_dict(late.state_dict())
    new = make(kind, fresh)
    assert bits(late)["inner.weight"] == bits(Net())["inner.weight"]
    update(late, optimizer, 9)
    update(fresh, new, 9)
    for name in ("inner.weight", "inner.bias"):
        one, other = dict(late.named_parameters())[name], dict(fresh.named_parameters())[name]
        assert torch.allclose(one, other, atol=1e-7), name


@pytest.mark.parametrize("kind", [kind for kind in INSTALLED if kind.values != ("schedule_free",)])  # never forgotten
def test_a_weight_that_is_forgotten_begins_as_if_it_were_first(kind: str) -> None:
    net = Net()
    optimizer = make(kind, net)
    for number in range(5):
        update(net, optimizer, number)
    optimizer.forget({net.inner.weight, net.inner.bias})
    memory = optimizer_state(optimizer, dict(net.named_parameters()))
    assert not [key for key in memory if key.startswith("inner") and key.rpartition("|")[2] in ("exp_avg", "step")]
    fresh = Net()
    fresh.load_state_dict(net.state_dict())
    new = make(kind, fresh)
    for one, its_optimizer in ((net, optimizer), (fresh, new)):
        torch.manual_seed(9)
        for weight in (one.inner.weight, one.inner.bias):
            weight.grad = torch.randn_like(weight)
        its_optimizer.step()
    assert torch.allclose(net.inner.weight, fresh.inner.weight, atol=1e-7)
    assert torch.allclose(net.inner.bias, fresh.inner.bias, atol=1e-7)


@pytest.mark.parametrize("kind", [kind for kind in INSTALLED if kind.values != ("schedule_free",)])  # which refuses it
def test_decay_leads_to_the_anchor(kind: str) -> None:
    """With gradients of zero, an anchored weight goes the share `rate * decay` of the way."""
    net = Net()
    anchor = torch.ones_like(net.outer.weight)
    optimizer = make(kind, net, ("outer.weight", "table"), **{"outer.weight": anchor})
    start = net.outer.weight.detach().clone()
    net.outer.weight.grad = torch.zeros_like(start)
    optimizer.step()
    share = 0.1 * OPTIMIZERS[kind][1]
    assert torch.allclose(net.outer.weight, start + share * (anchor - start), atol=1e-7)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_it_needs_is_installed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alloytune.train.optimizers.find_spec", lambda name: None)
    if "8" in kind or "apollo" in kind:
        with pytest.raises(InputError, match=r"pip install \"alloytune\[optimizers\]\""):
            require_installed(settings(kind), "optimizer")
    else:
        require_installed(settings(kind), "optimizer")
