"""The conversation on the screen: follow-ups, forks, branches, the held mix. Its drawing is in `talk_drawing`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial

import msgspec

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.generation import Generation
from dlm_tui.app.controllers.keeping import Keeping
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.sampling import AnswerSampling
from dlm_tui.app.controllers.shown_answers import ShownAnswers
from dlm_tui.app.controllers.surfaces import Pages, PromptSurface, TalkSurface
from dlm_tui.app.controllers.talk_drawing import TalkDrawing
from dlm_tui.app.controllers.transcript import Asking, Transcript
from dlm_tui.app.progress import progress_words
from dlm_tui.conversation import Conversation, load_conversation, new_conversation
from dlm_tui.counting import counted
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Event, Failed, Generate, Generated, Mixed, Progress, Stopped, Token
from dlm_tui.model.views import custom
from dlm_tui.store import AnswersError, KeptAnswer, answer_time


class Conversing:
    """One conversation at a time; the gate routes each turn from its own words, behind the turns before it."""

    def __init__(
        self,
        context: Context,
        routing: Routing,
        mixing: Mixing,
        sampling: AnswerSampling,
        keeping: Keeping,
        generation: Generation,
        shown: ShownAnswers,
        prompt: PromptSurface,
        talk: TalkSurface,
        pages: Pages,
    ) -> None:
        self._context, self._routing, self._mixing, self._sampling = context, routing, mixing, sampling
        self._keeping = keeping
        self._generation, self._shown, self._prompt, self._talk, self._pages = generation, shown, prompt, talk, pages
        self._drawing = TalkDrawing(context, mixing, talk)
        self.conversation: Conversation | None = None
        self._asking: Asking | None = None
        self._instead: KeptAnswer | None = None  # in whose place the next question is asked
        self._asks = asyncio.Lock()  # held from a question until what was written of its answer is a turn
        self._ready = asyncio.Lock()  # held while turns are read or written
        self._unkept: asyncio.Queue[tuple[Conversation, KeptAnswer]] = asyncio.Queue()
        self._keeps = True
        self._moved_told = False

    # ---- what there is ---------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a turn is being answered, or is about to be."""
        return self._asks.locked()

    @property
    def turns(self) -> list[KeptAnswer]:
        """The turns that the next question follows."""
        return self.conversation.path(self.conversation.here) if self.conversation else []

    @property
    def marked(self) -> KeptAnswer | None:
        """The turn that is marked on the screen."""
        number = self._talk.marked
        if self.conversation is None or number is None or number not in self.conversation:
            return None
        return self.conversation.turn(number)

    def asked_again(self, turn: KeptAnswer) -> list[KeptAnswer]:
        """The other answers to the same prompt in the place of a turn, behind the same turns before it."""
        talk = self.conversation
        beside = [talk.turn(number) for number in talk.branches(turn.answer_id)] if talk is not None else []
        return [
            other
            for other in beside
            if other.answer_id != turn.answer_id and other.prompt == turn.prompt and other.text.strip()
        ]

    @property
    def held(self) -> Mapping[str, float] | None:
        """The mix of the first turn, while it is held for all."""
        return self.turns[0].mix if self._context.state.talk.holds and self.turns else None

    def start(self) -> None:
        """Go on with the conversation of the last time."""
        if self._context.state.talk.name is not None:
            self._context.ui.run(self._find_again, "talk", "conversation")
        else:
            self.redraw()

    async def _find_again(self) -> None:
        talk = self._context.state.talk
        assert talk.name is not None
        async with self._ready:
            found = await self._load(talk.name)
        if found is None or not len(found):
            talk.name = talk.here = None
        elif self.conversation is None:
            if talk.here is None or talk.here in found:
                found.stand(talk.here)
            self.conversation = found
        await self._show()

    async def _load(self, name: str) -> Conversation | None:
        try:
            return await asyncio.to_thread(load_conversation, self._context.archive, name)
        except AnswersError as error:
            self._context.ui.say(str(error), error=True, title="No conversation")
            return None

    # ---- asking ----------------------------------------------------------------------------------------------------

    def follow_up(self) -> None:
        """Ask the prompt behind what is in front: the conversation, or the answer on the answers pane."""
        if self._generation.may_ask():
            context, text = self._context, self._prompt.text
            context.state.remember(text, dict(self._routing.weights or {}), context.gate_run)
            opening = None if self._pages.is_shown("talk") else self._shown.current
            settings = self._sampling.settings
            request = Generate(
                prompt=text, views=[self._mixing.view()], max_tokens=settings.max_tokens,
                temperature=settings.temperature, top_p=settings.top_p, seed=settings.seed,
            )  # fmt: skip
            self._prompt.set_text("")  # at once: what is typed from now on is another question
            context.ui.run(partial(self._ask, request, opening), "generate", "follow-up", exclusive=True)

    async def _ask(self, request: Generate, opening: KeptAnswer | None) -> None:
        """Ask when the question before has ended and is kept: a place is known by the ids of the turns before it."""
        async with self._asks:
            await self._unkept.join()
            await self._keeping.settled()
            opening = self._shown.newest_of(opening) if opening is not None else None
            async with self._ready:
                talk = await self._conversation_of(opening)
            await self._answer(request, talk)

    async def _answer(self, request: Generate, talk: Conversation) -> None:
        context, place = self._context, talk.asked_here()
        request.before = place["turns"]
        if self.held is not None:
            request.views = [custom(self.held, "held")]
        asking = self._asking = Asking(Transcript(request, answer_time(), context), place, {})
        finished = False
        try:
            self._pages.show_page("talk")
            await self._show()
            async for event in context.link.stream(request):
                asking.transcript.take(event)
                finished = self.take(event)
        except EngineGone as error:
            context.ui.say(str(error), error=True, title="No answer")
            finished = True
        finally:
            self._ended(asking, talk, gives_back=finished)
            if not finished:
                await context.link.cancel(request)

    async def _conversation_of(self, opening: KeptAnswer | None) -> Conversation:
        """The conversation that a follow-up belongs to, standing where it is asked."""
        talk = self.conversation
        if opening is not None:
            if talk is None or opening.answer_id not in talk:
                talk = None
                if opening.conversation is not None:
                    talk = await self._load(opening.conversation)
                if talk is None or opening.answer_id not in talk:
                    talk = new_conversation(msgspec.structs.replace(opening, turns=[], turn_ids=[]))
            talk.stand(opening.answer_id if opening.answer_id in talk else talk.here)
        if talk is None:
            talk = new_conversation()
        if talk is not self.conversation:
            self._use(talk)
        return talk

    def _use(self, talk: Conversation | None) -> None:
        self.conversation, self._instead, self._moved_told = talk, None, False
        self._context.state.talk.holds = False

    def take(self, event: Event) -> bool:
        """Show an event of the running follow-up; whether it was the last."""
        asking = self._asking
        assert asking is not None
        match event:
            case Progress():
                asking.note = progress_words(event)
            case Mixed(mixes=mixes):
                asking.mix = next(iter(mixes.values()), {})
            case Token(text=text):
                asking.note = "writing\u2026"
                self._talk.add(text)
            case Failed(text=text):
                self._context.ui.say(text, error=True, title="No answer")
                return True
            case Generated() | Stopped():
                return True
            case _:
                return False
        self._drawing.head_last(asking)
        return False

    def _ended(self, asking: Asking, talk: Conversation, *, gives_back: bool) -> None:
        """Take what was written in as a turn; where nothing was, the prompt comes back, unless it `gives_back` none: a
        newer question has taken its place, and what is typed behind that is yet another."""
        if asking.left:
            return
        self._asking = None
        answers = asking.transcript.answers()
        if answers:
            told = talk.add(msgspec.structs.replace(answers[0], **asking.place))
            self._instead = None
            if talk is self.conversation:
                self._drawing.finish(talk, told)
                self._say_cost(told)
            self._unkept.put_nowait((talk, told))
            self._context.ui.run(self._keep, "talk-keep", "keeping the turn")
        elif gives_back and not self._prompt.text:
            self._prompt.set_text(asking.transcript.request.prompt)
        self._context.ui.run(self._show, "talk", "conversation")

    async def _keep(self) -> None:
        async with self._ready:
            while not self._unkept.empty():
                try:
                    await self._keep_turn(*self._unkept.get_nowait())
                finally:
                    self._unkept.task_done()
        await self._show()

    async def _keep_turn(self, talk: Conversation, told: KeptAnswer) -> None:
        answer = msgspec.structs.replace(told, answer_id=0)
        try:
            (kept,) = await asyncio.to_thread(self._context.archive.keep, [answer])
        except AnswersError as error:
            if self._keeps:  # said once, not with every turn
                self._context.ui.say(str(error), error=True, title="Turns are not kept")
            self._keeps = False
            return
        self._keeps = True
        talk.kept(told.answer_id, kept)
        self._talk.rename(told.answer_id, kept.answer_id)

    def keep_now(self) -> None:
        """Keep what is still to be written, before leaving; a full disk must not keep anybody from leaving."""
        asking, self._asking = self._asking, None
        unkept = [self._unkept.get_nowait()[1] for _ in range(self._unkept.qsize())]
        if asking is not None:
            asking.left = True
            unkept += [msgspec.structs.replace(one, **asking.place) for one in asking.transcript.answers()]
        with contextlib.suppress(AnswersError):
            self._context.archive.keep([msgspec.structs.replace(told, answer_id=0) for told in unkept])

    async def stop(self) -> bool:
        """Stop the running follow-up; whether there was one."""
        if self._asking is None:
            return False
        await self._context.link.cancel(self._asking.transcript.request)
        self._context.ui.say("Stopped the answer; what was written stays.")
        return True

    def _say_cost(self, told: KeptAnswer) -> None:
        """Once in a conversation, when a moved mix cost another run of the history."""
        before = self.turns[-2] if len(self.turns) > 1 else None
        if before is None or before.mix == told.mix or told.run_tokens < told.prompt_tokens or self._moved_told:
            return
        if told.prefill_seconds is not None:
            self._moved_told = True
            self._context.ui.say(
                f"The mix moved, so the whole history was run again: {counted(told.run_tokens, 'token')}, "
                f"{told.prefill_seconds:.1f} s. {self._context.key('talk.hold')} in the conversation holds the mix of "
                "the first turn."
            )

    # ---- moving about ----------------------------------------------------------------------------------------------

    def at_turn(self, what: str, turn: int | None) -> None:
        """Do something in the conversation: `fork`, `next`, `previous` (branch) and `copy` at the marked turn; `hold`
        the first mix, begin a `new` one."""
        talk = self.conversation
        if self.running:
            self._context.ui.say("A turn is being answered.")
            return
        if talk is None or turn is None or turn not in talk:
            self._context.ui.say("There is no turn here yet.")
            return
        match what:
            case "hold":
                self._context.state.talk.holds = not self._context.state.talk.holds
            case "new":
                self._use(None)
                self._pages.go_to("prompt")
            case "fork":
                self._instead = talk.fork(turn)
                self._prompt.set_text(self._instead.prompt)
                self._pages.go_to("prompt")
            case "next" | "previous":
                other = talk.other_branch(turn, 1 if what == "next" else -1)
                if other is None:
                    self._context.ui.say("This turn has no other branch; a fork makes one.")
                    return
                talk.stand(other)
                self._instead = None
            case "copy":
                self._context.ui.copy(talk.turn(turn).text)
                self._context.ui.say("Copied the answer of the turn.")
                return
        self._context.ui.run(self._show, "talk", "conversation")

    def show_or_hide(self) -> None:
        """The conversation in the place of the answers, or the answers again."""
        self._pages.go_to("answers" if self._pages.is_shown("talk") else "talk")

    # ---- conversations of earlier ----------------------------------------------------------------------------------

    async def named(self, name: str) -> Conversation | None:
        """A conversation: the one on the screen, or as it is kept; None where it cannot be read, which is said."""
        talk = self.conversation
        async with self._ready:
            return talk if talk is not None and talk.name == name else await self._load(name)

    async def go_on_with(self, name: str) -> None:
        """Bring a conversation to the screen, unless a turn is being answered by then."""
        async with self._ready:
            found = await self._load(name)
        if found is not None and len(found) and not self.running:
            self._use(found)
            self._pages.go_to("talk")
            await self._show()

    async def forget(self, name: str) -> None:
        """Remove a conversation from what is kept, and from the screen. Raises AnswersError."""
        async with self._ready:
            await asyncio.to_thread(self._context.archive.forget_conversation, name)
        if self.conversation is not None and self.conversation.name == name and not self.running:
            self._use(None)
            await self._show()

    # ---- drawing ---------------------------------------------------------------------------------------------------

    def redraw(self, *_: object) -> None:
        """Draw the conversation again, as after another theme."""
        self._context.ui.run(self._show, "talk", "conversation")

    async def _show(self) -> None:
        talk, state = self.conversation, self._context.state.talk
        state.name, state.here = (talk.name, talk.here) if talk else (None, None)
        self._context.saver.soon()
        await self._drawing.show(talk, self._asking)
        self.show_next()

    def show_next(self) -> None:
        """What is said about the next turn, after the desk has changed."""
        self._drawing.show_next(self.turns, self.held, self._instead)
