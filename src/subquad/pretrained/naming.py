"""How converters of weights are written: a rule for each tensor, one error for all that differs.

Every tensor of one side is made of tensors of the other side, so nothing is lost either way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One tensor of ours: the names of theirs that it is made of, and both ways."""

    theirs: tuple[str, ...]
    join: Callable[[list[Tensor]], Tensor]
    part: Callable[[Tensor], list[Tensor]]


def same(name: str) -> Rule:
    """Return the rule of a tensor that is theirs as it stands."""
    return Rule(theirs=(name,), join=lambda parts: parts[0], part=lambda x: [x])


def moved(
    name: str, to_ours: Callable[[Tensor], Tensor], to_theirs: Callable[[Tensor], Tensor]
) -> Rule:
    """Return the rule of a tensor that is one of theirs with its axes in another order."""
    return Rule(theirs=(name,), join=lambda parts: to_ours(parts[0]), part=lambda x: [to_theirs(x)])


def expected_shapes(rules: Mapping[str, Rule], ours: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes of theirs that ``rules`` ask for; nothing is computed."""
    return {
        name: x.shape
        for key, rule in rules.items()
        for name, x in zip(rule.theirs, rule.part(ours[key].to("meta")), strict=True)
    }


def is_plain(x: Tensor) -> bool:
    """Return whether a tensor has floating numbers of its own, dense: what can be copied."""
    return x.is_floating_point() and x.layout == torch.strided and not x.is_meta


def check_finite(
    rules: Mapping[str, Rule],
    weights: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    *,
    what: str = "weights",
) -> None:
    """Require that theirs are finite, and stay so in the precision of ours.

    Raises:
        ValueError: with every name that has NaN or infinity.
    """
    bad = [
        name
        for key, rule in rules.items()
        for name in rule.theirs
        if not weights[name].to(ours[key].dtype).isfinite().all()
    ]
    if bad:
        dtype = ours[next(iter(rules))].dtype
        names = ", ".join(bad)
        raise ValueError(f"{what} must be finite in {dtype}, got NaN or infinity in {names}")


def check_names(
    expected: Mapping[str, torch.Size],
    weights: Mapping[str, Tensor],
    layout: str,
    *,
    what: str = "weights",
    hint: str = "",
    plain: bool = False,
) -> None:
    """Require ``weights`` to have these names, and under each this shape.

    Args:
        expected: names to shapes.
        weights: names to tensors.
        layout: whose names they are.
        what: what the error calls the weights.
        hint: what it ends with.
        plain: require plain tensors too; see ``is_plain``.

    Raises:
        ValueError: with every name that is missing, unexpected, of another shape or not plain.
    """
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    wrong = [
        f"{name} {tuple(weights[name].shape)} in place of {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    others = [
        f"{name} {x.dtype} {x.layout} on {x.device}"
        for name, x in sorted(weights.items())
        if plain and name in expected and not is_plain(x)
    ]
    if missing or unexpected or wrong or others:
        lists = (
            ("missing", missing), ("unexpected", unexpected), ("of another shape", wrong),
            ("not plain floating tensors", others),
        )  # fmt: skip
        said = "; ".join(f"{words}: {', '.join(names)}" for words, names in lists if names)
        raise ValueError(f"{what} must be those of this model in the layout {layout}; {said}{hint}")
