"""The slash commands of `dlm-tui repl`: those of the `dlm` tool (formats-2 §4) and what a conversation needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from dlm_tui.cli.repl_talk import Talk
from dlm_tui.conversation import load_conversation, save_conversation
from dlm_tui.counting import counted
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.meant import meant
from dlm_tui.moments import local_time
from dlm_tui.output import say
from dlm_tui.plain_numbers import number, whole_number

if TYPE_CHECKING:
    from dlm_tui.model.views import View
    from dlm_tui.store import KeptAnswer

_CUT = 100
_PARAMETERS = {"temperature": number, "top_p": number, "max_new_tokens": whole_number, "seed": whole_number}
_OTHER_NAMES = {"max_tokens": "max_new_tokens"}
_UNUSED = {"top_k", "repetition_penalty"}


@dataclass(frozen=True)
class Command:
    """What is typed behind the name, what it does, and the doing; it may return the text of the next line."""

    usage: str
    help: str
    run: Callable[[str], str | None]


class Commands:
    """Everything that begins with a slash. `leaving` is set by the commands that end the program."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.leaving = False
        self.table: dict[str, Command] = {
            "/exit": Command("", "leave", self._leave),
            "/quit": Command("", "leave", self._leave),
            "/clear": Command("", "begin a new conversation; this one stays kept", self._clear),
            "/save": Command("PATH", "role and content as JSON; .md to read, .jsonl with everything", self._save),
            "/adapter": Command("NAME", "only this adapter, as trained", self._adapter),
            "/view": Command("NAME", "base, gated, uniform, static, or one adapter", self._view),
            "/mix": Command("SPEC", "a fixed mix such as a:0.7,b:0.3, or a saved one", self._mix),
            "/gate": Command("auto|off", "route every turn from its own words, or uniform weights", self._gate),
            "/hold": Command("", "keep the mix of the first turn, or let it go again", self._hold),
            "/seed": Command("N", "where sampling starts", self._seed),
            "/params": Command("[K=V ...]", f"show or set {', '.join(_PARAMETERS)}", self._params),
            "/model": Command("", "base, adapters, gate, and what answers now", self._model),
            "/history": Command("", "the turns with their numbers", self._history),
            "/fork": Command("N", "ask turn N otherwise; both branches stay", self._fork),
            "/turn": Command("N", "go on behind turn N", self._turn),
            "/open": Command("[N]", "list the conversations that are kept, or go on with one", self._open),
            "/help": Command("", "this list", self._help),
        }

    def run(self, line: str) -> str | None:
        """Do what a line says; the text with which the next line begins, if there is one. Problems are said."""
        name, _, rest = line.strip().partition(" ")
        command = self.table.get(name.lower())
        if command is None:
            near = meant(name[:40], self.table, 0.5) or ": /help lists the commands."
            say(f"there is no command {name[:40]}{near}")
            return None
        try:
            return command.run(rest.strip())
        except DlmTuiError as error:
            say(str(error))
            return None

    # ---- the conversation ------------------------------------------------------------------------------------------

    def _leave(self, _: str) -> None:
        self.leaving = True

    def _clear(self, _: str) -> None:
        self._talk.begin_anew()
        say("a new conversation begins")

    def _save(self, rest: str) -> None:
        if not rest:
            raise UsageError("/save needs a path, such as /save talk.json")
        if not self._talk.turns:
            raise UsageError("there is nothing to save yet")
        path = save_conversation(rest, self._talk.turns)
        say(f"the conversation ({counted(len(self._talk.turns), 'turn')}) is in {path}")

    def _history(self, _: str) -> None:
        talk = self._talk.conversation
        here = {turn.answer_id for turn in self._talk.turns}
        numbers = {turn.answer_id: number for number, turn in enumerate(talk.all_turns, start=1)}
        if not numbers:
            say("nothing has been asked yet")
        for turn in talk.all_turns:
            number, after = numbers[turn.answer_id], numbers.get(turn.after or 0, 0)
            mark = "*" if turn.answer_id in here else " "
            behind = f" (after {after})" if after != number - 1 else ""
            stopped = " [cancelled]" if turn.reason == "stopped" else ""
            say(f"{mark}{number:3d}{behind} > {_cut(turn.prompt)}")
            say(f"      [{turn.view}] {_cut(turn.text)}{stopped}")

    def _fork(self, rest: str) -> str:
        turn = self._numbered(rest, "/fork")
        asked = self._talk.conversation.fork(turn.answer_id)
        say(f"asking in the place of: {_cut(asked.prompt)}")
        return asked.prompt

    def _turn(self, rest: str) -> None:
        turn = self._numbered(rest, "/turn")
        self._talk.conversation.stand(turn.answer_id)
        say(f"going on behind: {_cut(turn.prompt)}")

    def _open(self, rest: str) -> None:
        found = self._talk.kept.conversations()
        if not found:
            raise UsageError("no conversation is kept yet")
        if not rest:
            for number, summary in enumerate(found, start=1):
                at = local_time(summary.at, "%Y-%m-%d %H:%M")
                say(f"{number:3d}  {at}  {counted(summary.answers, 'turn'):>9}  {_cut(summary.title)}")
            return
        number = _number(rest, "/open", len(found))
        self._talk.begin_anew(load_conversation(self._talk.kept, found[number - 1].name))
        self._history("")

    def _numbered(self, rest: str, command: str) -> KeptAnswer:
        turns = self._talk.conversation.all_turns
        if not turns:
            raise UsageError("nothing has been asked yet")
        return turns[_number(rest, command, len(turns)) - 1]

    # ---- the mix and the sampling ----------------------------------------------------------------------------------

    def _use(self, view: View, words: str = "") -> None:
        self._talk.view, self._talk.holds = view, False
        say(f"the next turn is answered under {words or view.name}")

    def _adapter(self, rest: str) -> None:
        from dlm_tui.model.views import solo

        self._use(solo(self._trained(rest)))

    def _view(self, rest: str) -> None:
        from dlm_tui.model.views import VIEWS, adapter_of, named_view

        if not rest:
            raise UsageError(f"/view needs a name: {', '.join((*VIEWS, *self._talk.session.model.names))}")
        if rest not in VIEWS and (adapter := adapter_of(rest)) is not None:
            self._trained(adapter)
        self._use(named_view(rest))

    def _mix(self, rest: str) -> None:
        from dlm_tui.cli.prompt import mix_view

        if not rest:
            raise UsageError("/mix needs a mix, such as /mix a:0.7,b:0.3, or the name of a saved one")
        view = mix_view(self._talk.session.document, rest, signed=True)
        mix = self._talk.session.mix_of(view, None)
        weights = ", ".join(f"{name} {weight:g}" for name, weight in mix.items())
        self._use(view, weights if view.name == "custom" else f"{view.name} ({weights})")

    def _gate(self, rest: str) -> None:
        from dlm_tui.model.views import GATED, UNIFORM

        if rest not in ("auto", "off"):
            raise UsageError("/gate is auto or off")
        self._use(GATED if rest == "auto" else UNIFORM)

    def _hold(self, _: str) -> None:
        talk = self._talk
        if not talk.turns:
            raise UsageError("there is no first turn yet whose mix could be held")
        talk.holds = not talk.holds
        mix = "  ".join(f"{name} {weight:.3f}" for name, weight in talk.turns[0].mix.items()) or "the base alone"
        say(f"every turn is answered under {mix}" if talk.holds else f"turns are answered under {talk.view.name} again")

    def _trained(self, name: str) -> str:
        from dlm_tui.document.names import refuse_unknown_adapter, split_version
        from dlm_tui.model.views import VIEWS

        session = self._talk.session
        declared, trained = session.document.routing_names, session.model.names
        adapter, version = split_version(name)
        if name not in trained and not (version is not None and adapter in trained):
            if adapter in declared:
                raise UsageError(f"adapter {adapter!r} is not trained yet; run `dlm-tui train`")
            refuse_unknown_adapter(adapter, declared, VIEWS)
        session.model_for([{name: 1.0}])
        return name

    def _seed(self, rest: str) -> None:
        self._params(f"seed={rest}")

    def _params(self, rest: str) -> None:
        given = dict.fromkeys(rest.split())
        changes: dict[str, float] = {}
        for pair in given:
            key, _, value = pair.partition("=")
            name = _OTHER_NAMES.get(key, key)
            if name in _UNUSED:
                raise UsageError(f"{name} is not used here; there are {', '.join(_PARAMETERS)}")
            if name not in _PARAMETERS:
                near = meant(name, _PARAMETERS) or f": there are {', '.join(_PARAMETERS)}"
                raise UsageError(f"there is no parameter {key!r}{near}")
            try:
                changes["max_tokens" if name == "max_new_tokens" else name] = _PARAMETERS[name](value)
            except ValueError:
                raise UsageError(f"{key} must be a number, not {value!r}") from None
        sampling = self._talk.sampling
        self._talk.sampling = sampling = type(sampling)(**{**msgspec.structs.asdict(sampling), **changes})
        say(
            f"temperature {sampling.temperature:g}  top_p {sampling.top_p:g}  max_new_tokens {sampling.max_tokens}"
            f"  seed {sampling.seed}"
        )

    # ---- what there is ---------------------------------------------------------------------------------------------

    def _model(self, _: str) -> None:
        session = self._talk.session
        adapters = ", ".join(f"{name} v{version}" for name, version in session.versions.items()) or "none trained"
        say(f"base {session.base.identity.id} ({session.model.generation.tier}), adapters {adapters}")
        view = self._talk.next_view().name
        say(f"gate {session.gate_status.mode}; the next turn is answered under {view}")

    def _help(self, _: str) -> None:
        for name, command in self.table.items():
            say(f"{f'{name} {command.usage}'.strip():22s} {command.help}")


def _number(text: str, command: str, most: int) -> int:
    try:
        found = whole_number(text)
    except ValueError:
        found = 0
    if not 1 <= found <= most:
        raise UsageError(f"{command} needs a number from 1 to {most}")
    return found


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _CUT else f"{line[: _CUT - 1]}\u2026"
