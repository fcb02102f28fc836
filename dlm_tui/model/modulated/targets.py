"""Which linear layers a modulated adapter sits on, and what their weight is."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from dlm_tui.errors import DlmTuiError
from dlm_tui.model.offloaded import fetched
from dlm_tui.patterns import BoundedPatterns, PatternError

ALL_LINEAR = "all-linear"
DEFAULT_EXCLUDE = ("vision_tower", "lm_head")
WHOLE_DEPTH = (0.0, 1.0)

_LAYER = re.compile(r"^(?P<stack>.*?(?:^|\.)layers)\.(?P<index>\d+)\.")


class ModulationError(DlmTuiError, RuntimeError):
    """A modulated adapter cannot be built, attached, saved or loaded as asked."""


def as_patterns(targets: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern or several, as a tuple; each must compile as a regular expression.

    Raises ModulationError naming the pattern that does not.
    """
    patterns = (targets,) if isinstance(targets, str) else tuple(targets)
    for pattern in patterns:
        try:
            BoundedPatterns().check(pattern)
        except PatternError as problem:
            raise ModulationError(f"a target of the adapter cannot be used: {problem}") from None
    return patterns


def suffix_patterns(names: Sequence[str]) -> tuple[str, ...]:
    """Patterns for PEFT-style target names: a whole module name, or its last dotted parts ("q_proj")."""
    return tuple(name if name == ALL_LINEAR else rf"(^|\.){re.escape(name)}$" for name in names)


def match_targets(
    model: nn.Module,
    targets: str | Sequence[str] = ALL_LINEAR,
    exclude: str | Sequence[str] = DEFAULT_EXCLUDE,
    layer_range: tuple[float, float] = WHOLE_DEPTH,
) -> dict[str, nn.Linear]:
    """Linear layers by their name in `model.named_modules()`, in that order.

    `targets` is "all-linear" or regular expressions searched in the name; a name in which an `exclude`
    pattern is found is left out. `layer_range` = (low, high) keeps layers i of every `….layers.<i>.` stack
    of depth n with low·n ≤ i < high·n (rounded down); modules outside such a stack are kept. Raises
    ModulationError when nothing matches, or when a range is given and no target lies in a stack.
    """
    wanted, unwanted = as_patterns(targets), as_patterns(exclude)
    low, high = layer_range
    if not 0.0 <= low < high <= 1.0:
        raise ModulationError(f"layer_range must be two rising fractions between 0 and 1, not {layer_range!r}")
    bounded = BoundedPatterns()
    try:
        found = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and (ALL_LINEAR in wanted or any(bounded.search(pattern, name) for pattern in wanted))
            and not any(bounded.search(pattern, name) for pattern in unwanted)
        }
    except PatternError as problem:
        raise ModulationError(f"a target of the adapter cannot be used: {problem}") from None
    if found and layer_range != WHOLE_DEPTH:
        found = _within_range(found, _stack_depths(model), low, high)
    if not found:
        raise ModulationError(
            f"no linear layer matches {', '.join(map(repr, wanted))} "
            f"(excluded: {', '.join(map(repr, unwanted)) or 'nothing'}; layer range {low:g} to {high:g})"
        )
    return found


def range_readings(
    model: nn.Module, targets: Sequence[str], exclude: Sequence[str], layer_range: tuple[float, float]
) -> Iterator[dict[str, nn.Linear]]:
    """The layers that a range may mean: of the whole stack as in `match_targets`, then of the part of the stack up to
    the last layer that the targets match, then of the matched layers by their place. Raises ModulationError when
    nothing matches at all.
    """
    matched = match_targets(model, targets, exclude)
    low, high = layer_range
    yield _within_range(matched, _stack_depths(model), low, high)
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in matched:
        if match := _LAYER.match(name):
            numbers[match["stack"]].add(int(match["index"]))
    yield _within_range(matched, {stack: max(found) + 1 for stack, found in numbers.items()}, low, high)
    places = {(stack, number): place for stack, found in numbers.items() for place, number in enumerate(sorted(found))}
    depths = {stack: len(found) for stack, found in numbers.items()}
    yield _within_range(matched, depths, low, high, places)


def _stack_depths(model: nn.Module) -> dict[str, int]:
    """Layers per stack: a model with two towers has a depth for each."""
    depths: dict[str, int] = defaultdict(int)
    for name, _ in model.named_modules():
        if match := _LAYER.match(name + "."):
            depths[match["stack"]] = max(depths[match["stack"]], int(match["index"]) + 1)
    return depths


def _within_range(
    found: dict[str, nn.Linear],
    depths: Mapping[str, int],
    low: float,
    high: float,
    places: Mapping[tuple[str, int], int] | None = None,
) -> dict[str, nn.Linear]:
    """Layers whose number (or place, where given) lies in the range of their stack's depth."""
    if not any(_LAYER.match(name) for name in found):
        raise ModulationError("a layer range was given, but no target lies in a '.layers.<number>.' stack")
    kept = {}
    for name, module in found.items():
        match = _LAYER.match(name)
        if match is not None:
            depth = depths[match["stack"]]
            # 0.29 of 100 layers is 28.999…: a hair is added so that written fractions mean what they say
            first, end = math.floor(depth * low + 1e-9), math.floor(depth * high + 1e-9)
            number = int(match["index"])
            if not first <= (number if places is None else places[match["stack"], number]) < end:
                continue
        kept[name] = module
    return kept


def linear_layer(model: nn.Module, name: str, d_in: int, d_out: int) -> nn.Linear:
    """The linear layer `name` of `model`. Raises ModulationError when it is missing or has another shape."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ModulationError(f"the model has no module {name!r}") from None
    if not isinstance(layer, nn.Linear):
        raise ModulationError(f"{name!r} is a {type(layer).__name__}: a modulated adapter has linear layers only")
    if (layer.in_features, layer.out_features) != (d_in, d_out):
        raise ModulationError(
            f"{name!r} maps {layer.in_features} to {layer.out_features} values, the adapter {d_in} to {d_out}"
        )
    return layer


@torch.no_grad()
def dense_weight(layer: nn.Linear) -> Tensor:
    """The weight a layer acts with, [d_out, d_in] float32 (float64 layers keep their precision).

    A layer that stores its weight packed (quantised) is asked what it does to the unit vectors.
    """
    with fetched(layer):
        weight = layer.weight
        if weight.is_floating_point() and tuple(weight.shape) == (layer.out_features, layer.in_features):
            return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    unit = torch.eye(layer.in_features, dtype=torch.float32, device=weight.device)
    zero = torch.zeros(1, layer.in_features, dtype=torch.float32, device=weight.device)
    acting: Tensor = layer(unit) - layer(zero)
    return acting.T.to(torch.float32)
