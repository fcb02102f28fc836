"""The mixing desk: which mix an answer would use now, and what the desk shows of gate, engine and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.content import Content

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.controllers.surfaces import DeskSurface, PromptSurface
from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.mix import MODES, DeskHistory
from dlm_tui.app.panes.insight import ood_text
from dlm_tui.app.progress import progress_line
from dlm_tui.counting import counted
from dlm_tui.document.names import split_version
from dlm_tui.engine.protocol import Event, Routed
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.views import BASE, View, custom
from dlm_tui.store.adapter_history import find_version
from dlm_widgets.mixing_desk import Channel
from dlm_widgets.sanitize import assemble, literal
from dlm_widgets.turn_card import weight_strip

_TURNS = 24
"""Turns whose mixes the desk shows; a narrow one shows the first of these."""


class Mixing:
    """Changes the mix that is remembered for the document, and fills the desk."""

    def __init__(self, context: Context, routing: Routing, prompt: PromptSurface, desk: DeskSurface) -> None:
        self._context, self._routing, self._prompt, self._desk = context, routing, prompt, desk
        self._history = DeskHistory()
        self.changed: Signal[[]] = Signal()

    # ---- the mix ---------------------------------------------------------------------------------------------------

    def coefficients(self) -> dict[str, float]:
        """Adapter -> coefficient of an answer asked now."""
        mix, names = self._context.state.mix, self._context.names
        earlier = {name: self._earlier(name) for name in self.versions}
        return {**mix.coefficients(names, self._routing.weights), **earlier}

    @property
    def versions(self) -> tuple[str, ...]:
        """Earlier versions with a fader of their own, in the order in which they were put on the desk."""
        names = self._context.trained_names
        return tuple(name for name in self._context.state.desk_versions if split_version(name)[0] in names)

    def _earlier(self, name: str) -> float:
        """The coefficient of an earlier version: its fader in the custom mix, 1 alone, else 0."""
        mix = self._context.state.mix
        if mix.solos:
            return 1.0 if mix.solos == [name] else 0.0
        return mix.pins.get(name, mix.faders.get(name, 0.0) if mix.mode == "custom" else 0.0)

    def view(self) -> View:
        """The view that asks with the mix on the desk; the base while nothing is trained."""
        trained = self._context.trained_names
        if not trained:
            return BASE
        view = self._context.state.mix.view(trained, self._routing.weights)
        earlier = {name: self._earlier(name) for name in self.versions if self._earlier(name) != 0.0}
        if not earlier or view.kind == "solo":
            return view
        return custom({**self._context.state.mix.coefficients(trained, self._routing.weights), **earlier})

    def move_fader(self, name: str, value: float, *, drags: bool = False) -> None:
        """Set one adapter's coefficient; `drags` goes on with the move before, which is taken back as one."""
        if not drags:
            self._history.note(self._context.state.mix)
        self._context.state.mix.move_fader(name, value, self._context.names, self._routing.weights)
        self._changed()

    def switch(self, name: str, part: str) -> None:
        """Press solo, mute or pin."""
        self._history.note(self._context.state.mix)
        self._context.state.mix.toggle(name, part, self.coefficients().get(name, 0.0))
        self._changed()

    def reset(self) -> None:
        """Back to the gate alone."""
        self._history.note(self._context.state.mix)
        self._context.state.mix.reset()
        self._changed()

    def next_mode(self) -> None:
        """Gate, uniform, custom."""
        self.set_mode(self._context.state.mix.next_mode())

    def set_mode(self, mode: str) -> None:
        """Choose gate, uniform or custom."""
        for known in MODES:
            if mode == known and mode != self._context.state.mix.mode:
                self._history.note(self._context.state.mix)
                mix = self._context.state.mix
                mix.set_mode(known, self._context.names, self._routing.weights)
                self._changed()
                if mix.solos:
                    self._context.ui.say(f"The mode is {known}; it is heard when no adapter is solo any more.")

    def bring_back(self, mix: Mapping[str, float], versions: Mapping[str, int], kind: str) -> list[str]:
        """Put a mix of before on the desk, to the last digit, under the adapters' versions of then.

        An adapter of which another version is in force by now gets a fader for that of then. What cannot be had any
        more is told in sentences.
        """
        state, problems, then = self._context.state, list[str](), dict[str, float]()
        for name, value in mix.items():
            found = self._as_of(name, versions.get(name)) if value else name
            if found is None:
                problems.append(f"{name} as of then is gone, so it is left out.")
            else:
                then[found] = value
        added = [name for name in then if split_version(name)[1] is not None and name not in state.desk_versions]
        self._history.note(state.mix, added)
        state.desk_versions = [*state.desk_versions, *added]
        state.mix.reset()
        if kind == "uniform" and not added and set(then) == set(self._context.trained_names):
            state.mix.mode = "uniform"
        elif kind == "solo" and len(then) == 1:
            state.mix.solos = list(then)
        else:
            state.mix.mode, state.mix.faders = "custom", then
        self._changed()
        return problems

    def _as_of(self, name: str, version: int | None) -> str | None:
        """What an adapter of then is called now: `tone`, or `tone@3` if that is not in force; None when it is gone."""
        adapter, number = split_version(name)
        number = number or version
        if adapter not in self._context.names:
            return None
        opened = self._context.opened
        if name == adapter and (number is None or (opened is not None and opened.versions.get(adapter) == number)):
            return adapter
        try:
            find_version(self._context.store, adapter, number or 0)
        except DlmTuiError:
            return None
        return f"{adapter}@{number}"

    def undo(self) -> None:
        """Take the last change of the desk back."""
        before, state = self._history.take_back(), self._context.state
        if before is None:
            self._context.ui.say("Nothing on the desk was changed since it was opened.", warning=True)
            return
        state.mix, added = before
        state.desk_versions = [name for name in state.desk_versions if name not in added]
        state.mix.keep_only([*self._context.names, *state.desk_versions])
        self._changed()

    def _changed(self) -> None:
        self._desk.draw()  # at once: the next key moves the fader from where it is now
        self._context.saver.soon()
        self.changed.emit()

    # ---- the desk --------------------------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Draw the desk, in a moment."""
        self._desk.ask()

    def job_changed(self, record: JobRecord, event: Event | None) -> None:
        """While nothing is trained the desk shows how far the training is."""
        if not self._context.trained_names:
            self.redraw()

    def fill(self) -> None:
        """Put the strips and what the gate says on the desk."""
        opened = self._context.opened
        self._desk.show(self._channels(), stale=not self._context.link.ready)
        self._desk.retitle(self._context.state.mix.title(), *self._gate_words(self._routing.routed))
        self._desk.note(self._note(opened.gate if opened else "none", opened.gate_reason if opened else ""))

    def show_turns(self, mixes: Sequence[Mapping[str, float]]) -> None:
        """A conversation's mixes turn by turn, a strip of bars each; of a long one those of the newest turns."""
        first = max(0, len(mixes) - _TURNS)
        line = literal("turns" if not first else "turns \u2026", "dim") if mixes else Content("")
        for number, mix in enumerate(mixes[first:], start=first + 1):
            line += literal(f"  {number} ", "dim") + weight_strip(mix, self._context.marks)
        self._desk.turns(line)

    def show_problem(self, text: str) -> None:
        """The gate could not be asked."""
        self._desk.note(assemble(("\u2717 ", "bold $error"), text))

    def _channels(self) -> list[Channel]:
        mix, marks, coefficients = self._context.state.mix, self._context.marks, self.coefficients()
        trained, weights = (*self._context.trained_names, *self.versions), self._routing.weights
        return [
            Channel(
                name,
                marks[split_version(name)[0]].glyph,
                marks[split_version(name)[0]].color,
                weight=weights.get(name) if weights and name in trained else None,
                ghost=self._ghost_of(name),
                coefficient=coefficients.get(name, 0.0) if name in trained else 0.0,
                solo=name in mix.solos,
                mute=name in mix.mutes,
                pin=name in mix.pins,
                trained=name in trained,
                note=self._channel_note(name),
            )
            for name in (*self._context.names, *self.versions)
        ]

    def _ghost_of(self, name: str) -> float | None:
        """The weight before the last training, where it differs visibly."""
        ghost, weights = self._routing.ghost, self._routing.weights
        if ghost is None or weights is None or name not in ghost:
            return None
        return ghost[name] if abs(ghost[name] - weights.get(name, 0.0)) >= 0.02 else None

    def _channel_note(self, name: str) -> str:
        if split_version(name)[1] is not None:
            return "earlier version"
        if self._context.opened is None:
            return "no engine" if self._context.link.state.phase == "failed" else "loading"
        if name in self._context.on_disk:
            return "on disk"
        return "no gate" if name in self._context.trained_names else "not trained"

    def _gate_words(self, routed: Routed | None) -> list[str | Content]:
        opened = self._context.opened
        if opened is None or not self._context.trained_names:
            return []
        words: list[str | Content] = [
            f"{'' if self._context.state.mix.title() == 'gate' else 'gate '}{opened.gate}",
        ]
        if routed is None or self._routing.weights is None:
            return words
        if routed.is_ood:
            words.append(ood_text(routed))  # first, as the end is cut where the pane is narrow
        entropy = f"entropy {routed.entropy:.2f} nats ({routed.normalised_entropy:.0%})"
        words.append(entropy if self._context.link.ready else Content.styled(entropy, "dim"))
        words.append(Content.styled(f"{counted(routed.tokens, 'token')}{', cut' if routed.truncated else ''}", "dim"))
        return words

    def _note(self, gate: str, reason: str) -> Content:
        state = self._context.link.state
        if state.phase == "failed":
            return assemble(
                ("\u2717 ", "bold $error"),
                state.text,
                (f"  {self._context.key('engine.restart')} starts the engine again", "dim"),
            )
        if state.phase == "restarting":
            return assemble(("\u21bb ", "bold $warning"), state.text)
        if state.phase in {"starting", "loading"}:
            if state.progress:
                return progress_line(state.progress)
            return literal(f"opening: {state.text}\u2026" if state.text else "starting the engine\u2026", "dim")
        if not self._context.trained_names:
            return self._untrained_note()
        if not self._prompt.text:
            return Content.styled("No prompt yet: every adapter counts the same.", "dim")
        if gate != "trained" and reason:
            return assemble((f"gate {gate}: ", "bold $warning"), reason)
        return Content("")

    def _untrained_note(self) -> Content:
        record = self._context.board.running("train")
        if record:
            return progress_line(record.progress) if record.progress else Content("the training is starting\u2026")
        if self._context.on_disk:
            return assemble(("Trained elsewhere: ", "bold"), f"{self._context.news}.")
        what = self._context.document.training_words
        return assemble(
            ("Nothing is trained yet. ", "bold"), f"{self._context.key('train.all')} trains {what} in the background."
        )
