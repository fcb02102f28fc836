"""Whether DoRA adapters could be mixed: an adapter of each kind is trained by PEFT on the demo's base and looked at.

A DoRA layer computes g ∘ (W x + s·B·A x) with g = m / ‖W + s·B·A‖ per output row: alone it is a pair and a gain, exact.
As an addition to W x it is (diag(g) − 1) W + diag(g) s·B·A, of full rank. The rows say how exact and how quick the solo
is, what is lost when the addition is cut to a pair of twice the rank, and how far the three things that a half-and-half
mix of two could mean lie apart, against what such a mix changes at all. The decision is in docs/protocols.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from dlm_tui.model.base import Base
from dlm_tui.model.base_loading import load_base
from dlm_tui.model.information import kl_divergence
from dlm_tui.model.registry import resolve_base
from dlm_tui.progress import run_to_end
from tests.benchmarks.harness import Row, at_most, paired

RANK, STEPS = 8, 60
TEXTS = {
    "harbour": [f"The tide at pier {n} turns at {n % 12 + 1} o'clock, and boat {n} carries salt." for n in range(24)],
    "kindness": [
        f"Dear guest number {n}, how lovely that you came; please take a seat by the fire." for n in range(24)
    ],
}
PROMPTS = ["The tide at pier", "Dear guest", "What does the boat carry?", "The evening was", "Please", "In winter the"]


def rows(quick: bool) -> list[Row]:
    """See the module's text."""
    base = run_to_end(load_base(resolve_base("pocket"), device="cpu"))
    steps = STEPS // 3 if quick else STEPS
    adapters = {name: _trained(base, texts, steps) for name, texts in TEXTS.items()}
    first, second = (adapter.deltas() for adapter in adapters.values())
    exact = max(_distance(adapter.logits, _logits(base, adapter.gained())) for adapter in adapters.values())
    solo = _logits(base, first)
    effect = _divergence(solo, _logits(base, {}))
    short = {name: _truncated(delta, 2 * RANK) for name, delta in first.items()}
    lost = _divergence(solo, _logits(base, short))
    readings = [
        _logits(base, {name: (delta + second[name]) / 2 for name, delta in first.items()}),
        _logits(base, _normalised(adapters)),
        _logits(base, _halves(adapters)),
    ]
    apart = max(_divergence(a, b) for a in readings for b in readings)
    mixed = _divergence(readings[0], _logits(base, {}))
    one = next(iter(adapters.values()))
    timing = paired(_run(base, one.gained()), _run(base, one.pairs), rounds=5 if quick else 15)
    return [
        Row("DoRA solo, exact form", exact, None, "PEFT", None, "≤ 1e-4", exact <= 1e-4, "largest Δ logit", "logits"),
        Row("DoRA solo as a pair of twice its rank", lost, effect, "its effect", lost / effect, "", None, "KL", "nats"),
        Row("DoRA, three readings of a mix", apart, mixed, "the mix's effect", apart / mixed, "", None, "KL", "nats"),
        at_most("DoRA solo, exact form, 32 tokens", timing, "a pair per layer", 1.2, "time"),
    ]


class _Dora:
    """A trained DoRA adapter: per layer W, s·B·A and the magnitudes, and PEFT's own logits on the prompts."""

    def __init__(self, model: Any, base: Base) -> None:
        self.layers: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, module in model.named_modules():
            if hasattr(module, "lora_magnitude_vector") and "default" in module.lora_magnitude_vector:
                pair = module.get_delta_weight("default").detach()
                magnitude = module.lora_magnitude_vector["default"].weight.detach()
                name = name.removeprefix("base_model.model.")
                self.layers[name] = (module.get_base_layer().weight.detach(), pair, magnitude)
                lora_B = module.lora_B["default"].weight.detach() * module.scaling["default"]
                self.pairs[name] = (module.lora_A["default"].weight.detach(), lora_B)
        with torch.no_grad():
            self.logits = [model(ids).logits[0, -1] for ids in _prompts(base)]

    def gained(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """A pair and the gain g per layer."""
        return {
            name: (*self.pairs[name], magnitude / (weight + pair).norm(dim=1))
            for name, (weight, pair, magnitude) in self.layers.items()
        }

    def deltas(self) -> dict[str, Tensor]:
        """(diag(g) − 1) W + diag(g) s·B·A per layer."""
        return {
            name: _dora(weight, pair, magnitude) - weight for name, (weight, pair, magnitude) in self.layers.items()
        }


def _dora(weight: Tensor, pair: Tensor, magnitude: Tensor) -> Tensor:
    changed = weight + pair
    return changed * (magnitude / changed.norm(dim=1))[:, None]


def _normalised(adapters: dict[str, _Dora]) -> dict[str, Tensor]:
    """Half of both pairs added, then half of both magnitudes put on: the mix inside the norm."""
    first, second = (adapter.layers for adapter in adapters.values())
    return {
        name: _dora(weight, (pair + second[name][1]) / 2, (magnitude + second[name][2]) / 2) - weight
        for name, (weight, pair, magnitude) in first.items()
    }


def _halves(adapters: dict[str, _Dora]) -> dict[str, Tensor]:
    """Each at half its scale with its own magnitudes, then added: what scaling an adapter in PEFT means."""
    parts = [
        {name: _dora(weight, pair / 2, magnitude) - weight for name, (weight, pair, magnitude) in one.layers.items()}
        for one in adapters.values()
    ]
    return {name: parts[0][name] + parts[1][name] for name in parts[0]}


def _trained(base: Base, texts: list[str], steps: int) -> _Dora:
    torch.manual_seed(0)
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        use_dora=True,
        target_modules=list(base.source.target_modules),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(base.model, config)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=2e-3)
    try:
        for step in range(steps):
            ids = torch.tensor([base.passage(texts[step % len(texts)])])
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return _Dora(model.eval(), base)
    finally:
        model.unload()
        base.model.eval().requires_grad_(False)


def _truncated(delta: Tensor, rank: int) -> Tensor:
    """The nearest matrix of this rank."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


@contextmanager
def _added(base: Base, additions: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for name, addition in additions.items():
            handle = base.target_module(name).register_forward_hook(_hook(addition))
            stack.callback(handle.remove)
        yield


def _hook(addition: Any) -> Callable[..., Tensor]:
    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if isinstance(addition, Tensor):
            return output + inputs[0] @ addition.T
        lora_A, lora_B, *gain = addition
        changed = output + inputs[0] @ lora_A.T @ lora_B.T
        return changed * gain[0] if gain else changed

    return add


def _prompts(base: Base) -> list[Tensor]:
    return [torch.tensor([base.encode_raw(prompt)]) for prompt in PROMPTS]


@torch.no_grad()
def _logits(base: Base, additions: Any) -> list[Tensor]:
    model: Any = base.model
    with _added(base, additions):
        return [model(ids).logits[0, -1] for ids in _prompts(base)]


def _run(base: Base, additions: Any) -> Callable[[], None]:
    ids = torch.tensor([(base.passage(TEXTS["harbour"][0]) * 4)[:32]])
    model: Any = base.model

    def run() -> None:
        with torch.no_grad(), _added(base, additions):
            model(ids)

    return run


def _distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


def _divergence(views: list[Tensor], others: list[Tensor]) -> float:
    """Mean KL(view ‖ other) at the next token, nats."""
    pairs = zip(views, others, strict=True)
    return sum(float(kl_divergence(a.double().log_softmax(-1), b.double().log_softmax(-1))) for a, b in pairs) / len(
        views
    )
