"""A sweep: the answers and divergence of one adapter from -2 to 2, everything else as on the desk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.views import DeskView, PromptView
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, Generate, Message, Progress, Score, Scored, Token
from dlm_tui.model.views import custom

if TYPE_CHECKING:
    from dlm_tui.app.screens.sweep import SweepScreen

STEPS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
_MAX_TOKENS = 48


class Sweep:
    """Runs while its dialog is open."""

    def __init__(self, context: Context, mixing: Mixing, prompt: PromptView, desk: DeskView) -> None:
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
        score = Score(prompt=text, views=views, nulls=0)
        requests: tuple[Message, ...] = (score, generate)
        finished = False
        try:
            for request in requests:
                async for event in context.link.stream(request):
                    if isinstance(event, Scored):
                        dialog.set_scores({view.view: view.kl for view in event.views})
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
                for request in requests:
                    await context.link.cancel(request)
