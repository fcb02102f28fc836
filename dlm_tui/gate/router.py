"""Live routing: the gate's weights of a prompt that is being typed, with everything reused that can be."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dlm_tui.gate.attribution import TokenAttribution, token_attributions, trajectory
from dlm_tui.gate.embedding import LIMIT, PromptTokens, RawEncoder, prompt_tokens
from dlm_tui.gate.gate import Gate
from dlm_tui.gate.network import normalised
from dlm_tui.gate.surprise import PromptSurprise, Surprise, TellingBackbone, is_affordable
from dlm_tui.model.information import entropy
from dlm_tui.model.prefix_reuse import common_prefix
from dlm_tui.progress import Progress

PIECE = 128


class RouterBase(RawEncoder, Protocol):
    """What routing needs of a base."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def hidden_size(self) -> int: ...


@dataclass(frozen=True)
class RouteResult:
    """Weights per adapter (sum 1, declared order); entropy in nats and divided by ln N.

    `mode`: trained, uniform, stale or none; `reason` says why these are not the gate's own weights, or why it is stale.
    `tokens` used (at most 512, `truncated` when there were more), `reused` of them without a forward pass.
    `ood_score` in [0, 1] and `is_ood`: see OodDetector.judge; None without calibration. `settled`: they go by all of
    the prompt, not only by the surprise of its beginning.
    """

    weights: dict[str, float]
    entropy: float
    normalised_entropy: float
    mode: str
    tokens: int
    truncated: bool = False
    ood_score: float | None = None
    is_ood: bool = False
    settled: bool = True
    reason: str = ""
    reused: int = 0
    attributions: list[TokenAttribution] | None = None
    trajectory: list[dict[str, float]] | None = None

    @property
    def learned(self) -> bool:
        """Whether these are the weights that the trained gate gives this prompt, be it up to date or stale."""
        return self.mode in ("trained", "stale")

    @property
    def note(self) -> str:
        """What to say beside the weights: why they are uniform, or that they come from a stale gate; else empty."""
        if self.learned:
            return f"{self.reason} Its learned weights are used." if self.reason else ""
        return self.reason


@dataclass
class _Memory:
    """What has been run: token ids, their states [512, H] float32, running sums [513, H] float64, keys and values.

    Rows beyond len(ids) are left over and mean nothing. The cache always holds exactly `ids`.
    """

    states: Tensor
    running: Tensor
    ids: tuple[int, ...] = ()
    cache: Any = None


class PromptRouter:
    """Embeds a prompt incrementally and asks the gate.

    The longest common token prefix with the last prompt is kept: its states and sums as they are, its keys and values
    by cropping the cache. Only the rest runs, in pieces of 128 tokens. Deleting at the end runs nothing, and neither
    does typing the same again. Adapters are off. The language-model head is asked of new tokens only, and only where
    the gate's detector goes by surprise. A closed generator leaves a consistent state, and so does starting a new one
    while an older is still open.
    """

    def __init__(
        self,
        backbone: TellingBackbone,
        base: RouterBase,
        gate: Gate | None,
        names: tuple[str, ...] = (),
        gate_error: str | None = None,
    ) -> None:
        """`names` are the adapters to report 1/N for while there is no gate; `gate_error` says why there is none."""
        self.backbone = backbone
        self.base = base
        self.gate = gate
        self.names = names
        self.gate_error = gate_error
        size = base.hidden_size
        self._memory = _Memory(torch.zeros(LIMIT, size), torch.zeros(LIMIT + 1, size, dtype=torch.float64))
        self._count = 0
        self._surprise = PromptSurprise()

    def set_gate(self, gate: Gate | None, names: tuple[str, ...] | None = None, gate_error: str | None = None) -> None:
        """Ask another gate from now on; the embedding of the current prompt stays."""
        self.gate, self.gate_error = gate, gate_error
        if names is not None:
            self.names = names

    def reset(self) -> None:
        """Forget the last prompt, for example when the backbone changed."""
        self._memory.ids, self._memory.cache, self._count = (), None, 0
        self._surprise.reset()

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids of the last embedded prompt."""
        return self._memory.ids[: self._count]

    @property
    def known(self) -> tuple[tuple[int, ...], Any] | None:
        """Token ids and the cache that holds just their keys and values, adapters off; valid until the next step."""
        return (self._memory.ids, self._memory.cache) if self._memory.ids else None

    @property
    def states(self) -> Tensor:
        """Final hidden states [T, H] float32 of the last embedded prompt; a view, valid until the next route."""
        return self._memory.states[: self._count]

    def route(
        self, prompt: str, *, explain: bool = False, settled: bool = True
    ) -> Generator[Progress, None, RouteResult]:
        """Weights of the prompt; yields after every piece. An empty prompt, or no gate, gives 1/N and a reason.

        While somebody types, `settled=False` saves the output layer: the mark then goes by the surprise of what an
        earlier call has read of the prompt's beginning.
        """
        tokens = prompt_tokens(self.base, prompt)
        if not tokens.ids:
            return self._defined("The prompt is empty: every adapter has the same weight.", tokens, explain)
        if self.gate is None or self.gate.network is None:
            missing = (self.gate_error or "There is no gate yet.").rstrip()
            reason = missing if self.gate is None else "The gate is uniform (too few training prompts)."
            return self._defined(f"{reason} Every adapter has the same weight.", tokens, explain)
        if self.gate.config.input_dim != self.base.hidden_size:
            reason = f"The gate takes {self.gate.config.input_dim} numbers, the base gives {self.base.hidden_size}"
            return self._defined(f"{reason}: train the gate again.", tokens, explain)
        reused = yield from self._embed(tokens.ids)
        count = len(tokens.ids)
        embedding = (self._memory.running[count] / count).float()
        weights = self.gate.weights(embedding)
        spread = float(entropy(weights.double()))
        surprise, is_settled = self._read_surprise(self.gate, tokens.ids, settled)
        ood_score, is_ood = self.gate.ood_score.judge(embedding, surprise) if self.gate.ood_score else (None, False)
        return RouteResult(
            weights=dict(zip(self.gate.names, weights.tolist(), strict=True)),
            entropy=spread,
            normalised_entropy=normalised(spread, len(self.gate.names)),
            mode=self.gate.mode,
            tokens=count,
            truncated=tokens.truncated,
            ood_score=ood_score,
            is_ood=is_ood,
            settled=is_settled,
            reason=self.gate.stale,
            reused=reused,
            attributions=token_attributions(self.gate, self.base, prompt, tokens.ids, self.states) if explain else None,
            trajectory=trajectory(self.gate, self._memory.running[: count + 1]) if explain else None,
        )

    def embed(self, prompt: str) -> Generator[Progress, None, Tensor]:
        """The prompt embedding alone, float32 [H]; zeros for a prompt without tokens."""
        ids = prompt_tokens(self.base, prompt).ids
        if not ids:
            return torch.zeros(self.base.hidden_size)
        yield from self._embed(ids)
        return (self._memory.running[len(ids)] / len(ids)).float()

    def _read_surprise(self, gate: Gate, ids: tuple[int, ...], whole: bool) -> tuple[Surprise | None, bool]:
        """The surprise of the embedded prompt, None where the mark does not go by it; and whether it is of all."""
        detector = gate.ood_score
        if detector is None or detector.surprised is None or not is_affordable(self.backbone):
            return None, True
        if whole:
            return self._surprise.read(self.backbone, ids, self._memory.states), True
        known = self._surprise.so_far(ids)
        return known, known.tokens == len(ids) - 1

    def _defined(self, reason: str, tokens: PromptTokens, explain: bool) -> RouteResult:
        names = self.gate.names if self.gate is not None else self.names
        share = 1.0 / len(names) if names else 0.0
        spread = float(entropy(torch.full((len(names),), share, dtype=torch.float64)))
        empty: list[Any] | None = [] if explain else None
        return RouteResult(
            weights=dict.fromkeys(names, share),
            entropy=spread,
            normalised_entropy=normalised(spread, len(names)),
            mode="none" if self.gate is None else "uniform",
            tokens=len(tokens.ids),
            truncated=tokens.truncated,
            reason=reason,
            attributions=empty,
            trajectory=empty,
        )

    def _embed(self, ids: tuple[int, ...]) -> Generator[Progress, None, int]:
        """Bring states and sums up to `ids`; returns how many tokens needed no forward pass."""
        reused = ready = common_prefix(ids, self._memory.ids)
        yield Progress("prefill", ready, len(ids))
        # The prefix is looked up again after every pause: another prompt may have been routed meanwhile.
        while (ready := common_prefix(ids, self._memory.ids)) < len(ids):
            self._keep(ready)
            self._run(ids[ready : ready + PIECE], ready)
            yield Progress("prefill", len(self._memory.ids), len(ids))
        self._count = len(ids)
        return reused

    def _keep(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        memory = self._memory
        if length < len(memory.ids) or memory.cache is None:
            # Nothing in common: a fresh cache, as not every cache can be cropped to nothing.
            if memory.cache is None or length == 0:
                memory.cache = self.backbone.new_cache(1, LIMIT)
            else:
                memory.cache.crop(length)
            memory.ids = memory.ids[:length]

    def _run(self, piece: tuple[int, ...], start: int) -> None:
        memory = self._memory
        ids = torch.tensor([piece], dtype=torch.long, device=self.backbone.device)
        try:
            with torch.no_grad():
                hidden = self.backbone.forward(ids, memory.cache, None)
        except BaseException:
            # How far the cache got is unknown.
            self.reset()
            raise
        rows = hidden[0].detach().to(device="cpu", dtype=torch.float32)
        end = start + len(piece)
        memory.states[start:end] = rows
        memory.running[start + 1 : end + 1] = memory.running[start] + rows.double().cumsum(dim=0)
        memory.ids += piece
