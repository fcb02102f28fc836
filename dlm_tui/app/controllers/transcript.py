"""A request and what came of it, row by row, until it can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dlm_tui.app.controllers.context import Context
from dlm_tui.conversation.tree import Place
from dlm_tui.engine.protocol import Event, Failed, Generate, Generated, Mixed, Stopped, Token, ViewDone
from dlm_tui.model.views import View
from dlm_tui.store import KeptAnswer, Piece


@dataclass
class _Row:
    """One answer in the making."""

    view: View
    sample: int
    pieces: list[Piece] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    done: ViewDone | None = None


class Transcript:
    """Gathers the events of one `Generate`. Adapters and base are those that are in force when it is asked."""

    def __init__(self, request: Generate, at: str, context: Context) -> None:
        opened = context.opened
        self.request, self._at = request, at
        self._versions = dict(opened.versions) if opened else {}
        self._base = opened.base if opened else context.document.base_model
        self._dtype = (opened.dtype if opened else "") or context.config.generate.dtype
        self._system = context.document.system_prompt
        self._reason = "stopped"
        self._mixes: dict[str, dict[str, float]] = {}
        self._weights: dict[str, float] = {}
        self._seconds: float | None = None
        self._prefill_seconds: float | None = None
        self._dropped = 0
        self._rows = {
            (view.name, sample): _Row(view, sample) for view in request.views for sample in range(request.samples)
        }

    def take(self, event: Event) -> None:
        """Take one event down."""
        match event:
            case Mixed(mixes=mixes, weights=weights):
                self._mixes, self._weights = mixes, weights
            case Token(view=view, sample=sample, text=text, heat=heat, token_ids=ids):
                row = self._rows[view, sample]
                row.token_ids += ids
                if text:
                    row.pieces.append(Piece(text, heat))
            case ViewDone(view=view, sample=sample):
                self._rows[view, sample].done = event
            case Generated(seconds=seconds, dropped=dropped, prefill_seconds=prefill):
                self._seconds, self._dropped, self._prefill_seconds = seconds, dropped, prefill
            case Failed():
                self._reason = "failed"
            case Stopped():
                self._reason = "stopped"

    def answers(self) -> list[KeptAnswer]:
        """Every answer of which something was written, also if it was stopped."""
        return [self._answer(row) for row in self._rows.values() if row.done is not None or row.pieces]

    def _answer(self, row: _Row) -> KeptAnswer:
        request, done = self.request, row.done
        written = "".join(piece.text for piece in row.pieces)
        text = done.text if done is not None else written
        return KeptAnswer(
            prompt=request.prompt,
            text=text,
            view=row.view.name,
            kind=row.view.kind,
            mix=dict(self._mixes.get(row.view.name, {})),
            versions=self._versions,
            base=self._base,
            seed=done.seed if done is not None else request.seed + row.sample,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            reason=done.reason if done is not None else self._reason,
            at=self._at,
            dtype=self._dtype,
            system=self._system,
            turns=list(request.before),
            weights=dict(self._weights),
            token_ids=row.token_ids,
            pieces=row.pieces if text == written else [Piece(text)],
            seconds=self._seconds,
            dropped=self._dropped,
            prompt_tokens=done.prompt_tokens if done is not None else 0,
            run_tokens=done.run_tokens if done is not None else 0,
            prefill_seconds=self._prefill_seconds,
            sample=row.sample,
        )


@dataclass
class Asking:
    """A follow-up that is being answered."""

    transcript: Transcript
    place: Place
    mix: Mapping[str, float]
    note: str = "waiting\u2026"
    left: bool = False  # kept as far as it came, because the program ends
