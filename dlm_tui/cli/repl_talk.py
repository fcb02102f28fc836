"""A conversation of the command line: what is asked, under which mix, and what is kept of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING

from dlm_tui.cli.answering import Question, answer, ask
from dlm_tui.conversation import Conversation, new_conversation
from dlm_tui.output import say
from dlm_tui.store import AnswersError, KeptAnswer, KeptAnswers, answer_time

if TYPE_CHECKING:
    from dlm_tui.model import Generated, Sampling
    from dlm_tui.model.views import View
    from dlm_tui.session import Session


class AnswerStopped(KeyboardInterrupt):
    """Ctrl-C while an answer is written: the answer ends, the conversation goes on."""


class Talk:
    """The conversation that goes on, and with what the next question is asked."""

    def __init__(self, session: Session, view: View, sampling: Sampling, kept: KeptAnswers) -> None:
        self.session, self.view, self.sampling, self.kept = session, view, sampling, kept
        self.conversation: Conversation = new_conversation()
        self.holds = False
        """Whether every turn is answered under the mix of the first one."""
        self._keeps = True
        self._moved_told = False

    @property
    def turns(self) -> list[KeptAnswer]:
        """The turns that the next question follows."""
        return self.conversation.path(self.conversation.here)

    def begin_anew(self, conversation: Conversation | None = None) -> None:
        """Go on with another conversation, by default a new one; the one before it stays kept."""
        self.conversation = conversation or new_conversation()
        self.holds = self._moved_told = False

    def next_view(self) -> View:
        """The view of the next turn."""
        from dlm_tui.model.views import custom

        turns = self.turns
        return custom(turns[0].mix, "held") if self.holds and turns else self.view

    def say_to(self, prompt: str, write: Callable[[str], None], *, stoppable: bool) -> KeptAnswer:
        """Ask behind the turns so far, pass the text on as it comes, and keep the answer.

        With `stoppable` Ctrl-C ends the answer, which then stays as far as it came.
        """
        place, began = self.conversation.asked_here(), datetime.now().astimezone()
        started = monotonic()
        pieces: list[str] = []
        ids: list[int] = []
        question: Question | None = None
        said: Generated | None = None

        def piece(text: str, token: int) -> None:
            pieces.append(text)
            ids.extend([token] if token >= 0 else [])
            if text:
                write(text)

        try:
            with _stopped_by_interrupt() if stoppable else contextlib.nullcontext():
                question = ask(self.session, prompt, self.next_view(), self.sampling, place["turns"])
                said = answer(self.session, question, piece)
        except AnswerStopped:
            if question is None:
                raise
        assert question is not None
        sampling, session = question.sampling, self.session
        told = KeptAnswer(
            prompt=prompt,
            text=said.text if said else "".join(pieces),
            view=question.view.name,
            kind=question.view.kind,
            mix=question.mix,
            weights=question.weights,
            versions=dict(session.versions),
            base=session.base.identity.id,
            dtype=str(session.model.decoding_dtype).removeprefix("torch."),
            seed=sampling.seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            system=session.document.system_prompt,
            reason=said.reason if said else "stopped",
            token_ids=said.token_ids if said else ids,
            dropped=question.chat.dropped,
            prompt_tokens=len(question.chat.ids),
            run_tokens=said.run_tokens if said else 0,
            prefill_seconds=said.prefill_seconds if said else None,
            seconds=monotonic() - started,
            at=answer_time(began),
            **place,
        )
        return self.conversation.add(self._kept(told))

    def _kept(self, told: KeptAnswer) -> KeptAnswer:
        """The answer as it was kept; where that is not possible the conversation goes on in memory."""
        try:
            (told,) = self.kept.keep([told])
        except AnswersError as error:
            if self._keeps:
                say(f"{error} This conversation is not kept.")
            self._keeps = False
        return told

    def about(self, told: KeptAnswer) -> list[str]:
        """What is said about an answer: its mix, what of the history had to be run, what no longer fitted."""
        mix = "  ".join(f"{name} {weight:.3f}" for name, weight in told.mix.items())
        lines = [f"[{told.view}] {mix}".rstrip()]
        if told.turns and told.prefill_seconds is not None:
            lines[0] += f"  ({told.run_tokens} of {told.prompt_tokens} tokens run, {told.prefill_seconds:.1f} s)"
        if told.dropped:
            turns = "turn was" if told.dropped == 1 else f"{told.dropped} turns were"
            lines.append(f"the oldest {turns} left out: the context has no room for more")
        before = self.turns[-2] if len(self.turns) > 1 else None
        if before and before.mix != told.mix and told.run_tokens == told.prompt_tokens and not self._moved_told:
            self._moved_told = True
            lines.append("the mix moved, so the history was run again; /hold keeps the mix of the first turn")
        if told.reason == "stopped":
            lines.append("stopped; what was written stays")
        return lines


@contextlib.contextmanager
def _stopped_by_interrupt() -> Iterator[None]:
    """Ctrl-C raises AnswerStopped meanwhile, so that it is told from the end of the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise AnswerStopped

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
