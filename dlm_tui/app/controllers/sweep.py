"""A sweep: the answers and divergence of one adapter from -2 to 2, everything else as on the desk.

An adapter with preference pairs shows also what becomes of the answers of one: the pair of the prompt that is typed,
else the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.surfaces import DeskSurface, PromptSurface
from dlm_tui.document import Document, Row, route_sections, training_rows
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, Generate, Message, Progress, Score, Scored, Token
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.views import custom

if TYPE_CHECKING:
    from dlm_tui.app.screens.sweep import SweepScreen

STEPS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
_MAX_TOKENS = 48


class Sweep:
    """Runs while its dialog is open."""

    def __init__(self, context: Context, mixing: Mixing, prompt: PromptSurface, desk: DeskSurface) -> None:
        self._context, self._mixing, self._prompt, self._desk = context, mixing, prompt, desk

    async def open(self) -> None:
        """Sweep the selected adapter."""
        context, name, text = self._context, self._desk.selected, self._prompt.text
        if name is None or name not in context.trained_names or not context.link.ready:
            context.ui.say("A sweep needs a trained adapter and a running engine.", warning=True)
            return
        if not text.strip():
            context.ui.say("A sweep needs a prompt.", warning=True)
            return
        from dlm_tui.app.screens.sweep import SweepScreen

        dialog = SweepScreen(name, context.marks[name], STEPS)
        await context.ui.open_dialog(dialog)
        task = context.ui.run(partial(self._run, dialog, name, text), "sweep", "sweep", exclusive=True)
        dialog.on_closed = task.cancel

    async def _run(self, dialog: SweepScreen, name: str, text: str) -> None:
        context = self._context
        others = {
            other: value for other, value in self._mixing.coefficients().items() if other in context.trained_names
        }
        views = [custom({**others, name: step}, name=f"{step:+.1f}") for step in STEPS]
        generate = Generate(prompt=text, views=views, max_tokens=min(_MAX_TOKENS, context.config.generate.max_tokens))
        work: list[tuple[Message, Callable[[Scored], None]]] = [
            (Score(prompt=text, views=views, nulls=0), partial(_show_effect, dialog))
        ]
        pair = await asyncio.to_thread(pair_of, context.document, name, text)
        if pair is not None:
            dialog.set_pair(pair.prompt)
            for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                score = Score(prompt=pair.prompt, views=views, completion=answer, nulls=0)
                work.append((score, partial(_show_side, dialog, side)))
        work.append((generate, lambda scored: None))
        finished = False
        try:
            for request, show in work:
                async for event in context.link.stream(request):
                    if isinstance(event, Scored):
                        show(event)
                    elif isinstance(event, Token):
                        dialog.add_text(event.view, event.text)
                    elif isinstance(event, Progress):
                        dialog.show_progress(event)
                    elif isinstance(event, Failed):
                        dialog.set_problem(event.text)
            finished = True
            dialog.set_done()
        except EngineGone as error:
            dialog.set_problem(str(error))
            finished = True
        finally:
            if not finished:
                for request, _ in work:
                    await context.link.cancel(request)


def _show_effect(dialog: SweepScreen, scored: Scored) -> None:
    dialog.set_scores({view.view: view.kl for view in scored.views})


def _show_side(dialog: SweepScreen, side: str, scored: Scored) -> None:
    dialog.set_side(side, {view.view: view.logprob for view in scored.views if view.logprob is not None})


def pair_of(document: Document, name: str, prompt: str) -> Row | None:
    """The preference pair of the adapter with this prompt, else its first; None where it has none that can be read."""
    try:
        rows = training_rows(document, route_sections(document)[name])
    except DlmTuiError:
        return None
    pairs = [row for row in rows if row.kind == "preference"]
    asked = prompt.strip()
    return next((row for row in pairs if row.prompt.strip() == asked), pairs[0] if pairs else None)
