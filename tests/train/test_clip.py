"""Limits on the gradient's norm."""

import pytest
import torch

from alloytune.train.clip import make_clip


def groups() -> list[dict[str, object]]:
    made = []
    for role, sizes in (("layers", [3.0]), ("head", [0.3]), ("layers", [4.0])):
        weights = [torch.zeros(1, requires_grad=True) for _ in sizes]
        for weight, size in zip(weights, sizes, strict=True):
            weight.grad = torch.tensor([size])
        made.append({"role": role, "params": weights})
    return made


@pytest.mark.parametrize("per", ["all", "group"])
def test_no_gradient_has_no_norm(per: str) -> None:
    """In mode views all weights may be 0 for an update."""
    given = groups()
    for group in given:
        for weight in group["params"]:  # type: ignore[attr-defined]
            weight.grad = None
    assert float(make_clip(1.0, per)(given)) == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("norm", "per", "expected"),
    [
        (None, "all", [3.0, 0.3, 4.0]),
        (1.0, "all", [3 / 5.009, 0.3 / 5.009, 4 / 5.009]),
        (1.0, "group", [0.6, 0.3, 0.8]),
    ],
)
def test_norms(norm: float | None, per: str, expected: list[float]) -> None:
    """Layers have a norm of 5, the head one of 0.3: by group, the head keeps its own."""
    given = groups()
    assert float(make_clip(norm, per)(given)) == pytest.approx((25 + 0.09) ** 0.5)  # type: ignore[arg-type]
    assert [float(group["params"][0].grad) for group in given] == pytest.approx(expected, rel=1e-4)  # type: ignore[index]
