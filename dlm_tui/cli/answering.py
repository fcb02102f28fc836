"""One question of a headless command: which mix answers it, what is run for it, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlm_tui.output import say

if TYPE_CHECKING:
    from dlm_tui.model import Generated, Sampling
    from dlm_tui.model.chat_history import FittedChat
    from dlm_tui.model.views import View
    from dlm_tui.session import Session
    from dlm_tui.store import Turn


@dataclass(frozen=True)
class Question:
    """A prompt with the mix that answers it, the gate's weights where it was asked, and the tokens to run."""

    prompt: str
    view: View
    mix: dict[str, float]
    weights: dict[str, float]
    chat: FittedChat
    sampling: Sampling


def ask(session: Session, prompt: str, view: View, sampling: Sampling, before: Sequence[Turn] = ()) -> Question:
    """Route the prompt where the view asks for it, and render it behind the turns `before` it."""
    from dlm_tui.progress import run_to_end

    routed = run_to_end(session.router.route(prompt)) if view.kind == "gated" else None
    if routed is not None and routed.note:
        say(routed.note)
    weights = dict(routed.weights) if routed else {}
    chat = session.chat(before, prompt, sampling.max_tokens)
    return Question(prompt, view, session.mix_of(view, weights or None), weights, chat, sampling)


def answer(session: Session, question: Question, piece: Callable[[str, int], None]) -> Generated:
    """The answer; `piece` is called with the text and the id of every token as it comes, an end token without one."""
    from dlm_tui.model import GenerationEvent, generate
    from dlm_tui.progress import run_to_end

    def step(event: object) -> None:
        if isinstance(event, GenerationEvent):
            piece(event.text_delta, event.token_id if event.reason != "stop" else -1)

    model = session.model_for([question.mix])
    work = generate(model, question.chat.ids, [question.mix], question.sampling, known=session.known)
    return run_to_end(work, step)[0]
