"""The answers on the pane: what each was asked with, and whether it is an answer of now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dlm_tui.app.cards import CardKey, FinishedCard
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.surfaces import AnswersSurface, PromptSurface
from dlm_tui.counting import counted
from dlm_tui.engine.protocol import Opened
from dlm_tui.model.views import View
from dlm_tui.store import KeptAnswer

_ENDS = {"length": "cut at the limit", "context": "cut at the limit", "stopped": "stopped", "failed": "failed"}


@dataclass
class Shown:
    """One card; `answer` when it has ended."""

    key: CardKey
    prompt: str
    at: str
    answer: KeptAnswer | None = None


class ShownAnswers:
    """Puts answers on the pane and says of those of another prompt or of earlier adapters that they are."""

    def __init__(self, context: Context, prompt: PromptSurface, answers: AnswersSurface) -> None:
        self._context, self._prompt, self._answers = context, prompt, answers
        self._shown: list[Shown] = []
        self._views: list[View] = []
        self._marked: list[str] = []
        self._lock = asyncio.Lock()  # one change of the cards after the other

    @property
    def current(self) -> KeptAnswer | None:
        """The finished answer that a person looks at."""
        index = self._answers.current_index
        return self._shown[index].answer if index is not None and index < len(self._shown) else None

    def newest_of(self, answer: KeptAnswer) -> KeptAnswer:
        """The answer as the pane has it: with its id, once it is kept."""
        same = (answer.at, answer.view, answer.sample)
        return next((one for one in self.finished if (one.at, one.view, one.sample) == same), answer)

    @property
    def finished(self) -> list[KeptAnswer]:
        """All finished answers on the pane, in order."""
        return [shown.answer for shown in self._shown if shown.answer is not None]

    @property
    def prompts(self) -> list[str]:
        """What each answer on the pane was asked with."""
        return [shown.prompt for shown in self._shown]

    def mix_of(self, view: str) -> dict[str, float]:
        """The mix of the view on the pane that has this name; {} while it is not complete."""
        return next((dict(answer.mix) for answer in self.finished if answer.view == view), {})

    @property
    def asked_at(self) -> str | None:
        """When the answers on the pane were asked for; None while it is empty."""
        return self._shown[0].at if self._shown else None

    def views_of_now(self) -> list[View]:
        """What the answers on the pane were asked under, if they are of the current prompt; else nothing."""
        text = self._prompt.text
        return list(self._views) if self._shown and all(shown.prompt == text for shown in self._shown) else []

    async def begin(self, prompt: str, at: str, views: Sequence[View], samples: int) -> None:
        """Make ready for answers that are asked for now."""
        keys = [CardKey(view.name, sample) for view in views for sample in range(samples)]
        async with self._lock:
            await self._answers.begin(keys, self._context.marks)
            self._use([Shown(key, prompt, at) for key in keys], views)

    def ended(self, answers: Sequence[KeptAnswer]) -> None:
        """These have ended, or are kept and have their ids now."""
        found = {(CardKey(answer.view, answer.sample), answer.at): answer for answer in answers}
        for shown in self._shown:
            shown.answer = found.get((shown.key, shown.at), shown.answer)
        self.mark()

    async def show(self, answers: Sequence[KeptAnswer]) -> None:
        """Put answers of one asking on the pane, in place of what is there."""
        answers = list({(answer.view, answer.sample): answer for answer in answers}.values())
        views = {answer.view: asked_view(answer) for answer in answers}
        async with self._lock:
            await self._answers.show_finished([_card(answer) for answer in answers], self._context.marks)
            self._use([_shown(answer) for answer in answers], list(views.values()))

    async def lay_beside(self, answer: KeptAnswer) -> None:
        """Put one more answer on the pane, behind the others; once."""
        async with self._lock:
            if all(shown.answer is None or shown.answer.answer_id != answer.answer_id for shown in self._shown):
                await self._answers.lay_beside(_card(answer), self._context.marks)
                self._use([*self._shown, _shown(answer)], self._views)

    def _use(self, shown: list[Shown], views: Sequence[View]) -> None:
        self._shown, self._views, self._marked = shown, list(views), []
        self.mark()

    def mark(self, *_: object) -> None:
        """Say of every answer whether it is of the current prompt and of the adapters in force."""
        text, opened = self._prompt.text, self._context.opened
        words = [past_words(shown, text, opened) for shown in self._shown]
        if words != self._marked:
            self._marked = words
            self._answers.mark_past(words)


def past_words(shown: Shown, prompt: str, opened: Opened | None) -> str:
    """`another prompt`, `earlier adapters`, `another base`, joined; empty for an answer that would be given now."""
    words = ["another prompt"] if shown.prompt != prompt else []
    if shown.answer is not None and opened is not None:
        words += _moved(shown.answer, opened)
    return ", ".join(words)


def _moved(answer: KeptAnswer, opened: Opened) -> list[str]:
    words = ["another base"] if answer.base != opened.base else []
    asked = [name for name, value in answer.mix.items() if value and "@" not in name]
    if any(answer.versions.get(name) != opened.versions.get(name) for name in asked):
        words.append("earlier adapters")
    return words


def asked_view(answer: KeptAnswer) -> View:
    """The view that asks as the answer was asked; a hand-picked mix to the last digit."""
    match answer.kind:
        case "solo":
            return View(name=answer.view, kind="solo", adapter=next(iter(answer.mix), answer.view))
        case "base" | "gated" | "uniform" | "static":
            return View(name=answer.view, kind=answer.kind)
    return View(name=answer.view, kind="custom", mix=dict(answer.mix))


def _shown(answer: KeptAnswer) -> Shown:
    return Shown(CardKey(answer.view, answer.sample), answer.prompt, answer.at, answer)


def _card(answer: KeptAnswer) -> FinishedCard:
    pieces = [(piece.text, piece.heat) for piece in answer.pieces] or [(answer.text, None)]
    end = end_words(len(answer.token_ids), answer.reason, answer.seed if answer.temperature else None)
    note = ", ".join(filter(None, (end, when(answer.at))))
    return FinishedCard(CardKey(answer.view, answer.sample), pieces, note)


def end_words(tokens: int, reason: str, seed: int | None) -> str:
    """`seed 3, 12 tokens, cut at the limit`: the seed if it was sampled, and how it ended if not by itself."""
    seeds = [f"seed {seed}"] if seed is not None else []
    length = [counted(tokens, "token")] if tokens else []
    return ", ".join([*seeds, *length, *([_ENDS[reason]] if reason in _ENDS else [])])


def when(at: str, now: Callable[[], datetime] = datetime.now) -> str:
    """The local time of day, before today with its date."""
    moment = datetime.fromisoformat(at).astimezone()
    return moment.strftime("%H:%M" if moment.date() == now().astimezone().date() else "%Y-%m-%d %H:%M")
