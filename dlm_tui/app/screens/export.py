"""The export dialog: target, quantisation, mix, destination; what is typed next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Input
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.app.state import ExportSettings
from dlm_tui.counting import counted
from dlm_tui.document import parse_mix
from dlm_tui.engine.protocol import DriftFigures, ExportReport
from dlm_tui.errors import DlmTuiError
from dlm_tui.export.choices import QUANTS, TARGET_TEXTS, TARGETS
from dlm_tui.export.cost_table import table
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import literal
from dlm_widgets.tick_box import TickBox

_OWN = "the document's"
"""For a merged folder: the base's own type."""
GATE_MIXES = (None, "best")
"""Mixes that are made from the gate, where there is one."""
_NOTHING_YET = "Nothing has been exported since the start."


class ExportScreen(Dialog[ExportSettings]):
    """Everything has a default; the accept key exports."""

    TITLE_TEXT = "Export"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Export"),
        ("dialog.copy", "Copy command"),
        ("dialog.close", "Cancel"),
    )

    def __init__(
        self,
        settings: ExportSettings,
        hand_mix: str | None,
        saved: Mapping[str, str],
        last: str | None,
        names: Sequence[str],
        result: ExportReport | None = None,
        ollama: str | None = None,
        *,
        has_gate: bool = True,
        no_exports: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`saved` are named mixes; `ollama` is the program that is installed here, None if there is none; `no_exports`
        are the targets that this base cannot have, each with the reason.

        Without a gate no mix is offered that is made from one.
        """
        super().__init__()
        self._ollama, self._no_exports = ollama, no_exports
        self._settings, self._last, self._names = settings, last, list(names)
        self._result = result
        self._costs = list(result.comparison) if result is not None else []
        self.on_copy: Callable[[str], None] = lambda command: None
        self._mixes: list[tuple[str | None, str]] = (
            [(None, "the gate's static mean"), ("uniform", "uniform"), ("best", "best fixed mix")]
            if has_gate
            else [(None, "the adapter alone")]
            if len(names) == 1
            else [("uniform", "uniform")]
        )
        if hand_mix:
            self._mixes.append((hand_mix, f"the desk's: {hand_mix}"))
        self._mixes += [(name, f"{name}: {mix}") for name, mix in saved.items()]
        if settings.mix not in {mix for mix, _ in self._mixes} and (has_gate or settings.mix not in GATE_MIXES):
            self._mixes.append((settings.mix, f"as last time: {settings.mix}"))

    def compose_body(self) -> ComposeResult:
        """Three lists, a folder, the last result."""
        with Horizontal(id="export-lists"):
            with Vertical():
                yield LiteralStatic("Target", classes="field")
                yield PickList(
                    *[Option(self._named(target)) for target in TARGETS],
                    id="export-target",
                    markup=False,
                )
            with Vertical():
                yield LiteralStatic("Number format (GGUF)", classes="field")
                yield PickList(*[Option(literal(text)) for text in (_OWN, *QUANTS)], id="export-quant", markup=False)
            with Vertical():
                yield LiteralStatic("Mix", classes="field")
                yield PickList(*[Option(literal(text)) for _, text in self._mixes], id="export-mix", markup=False)
        yield LiteralStatic(classes="note", id="export-note")
        yield TickBox(
            "Register with Ollama afterwards (ollama create)",
            self._settings.register and self._ollama is not None,
            id="export-register",
        )
        yield TickBox(
            "Measure what each format costs first",
            False,
            id="export-compare",
        )
        if self._costs:
            yield LiteralStatic("What each format costs, against float32 in llama.cpp", classes="field")
            head, *rows = table(self._costs).splitlines()
            yield LiteralStatic(head, classes="note")
            yield PickList(*[Option(literal(row)) for row in rows], id="export-costs", markup=False)
        yield LiteralStatic("Folder (empty: the store's exports)", classes="field")
        yield Input(value=self._settings.out or "", placeholder="the store's exports folder", id="export-out")
        yield LiteralStatic(last_export_text(self._last, self._result), id="export-last")

    def on_mount(self) -> None:
        """The last used settings."""
        super().on_mount()
        target, quant = self._settings.target, self._settings.quant
        self._lists["target"].highlighted = TARGETS.index(target) if target in TARGETS else 0
        self._lists["quant"].highlighted = QUANTS.index(quant) + 1 if quant in QUANTS else 0
        mixes = [mix for mix, _ in self._mixes]
        self._lists["mix"].highlighted = mixes.index(self._settings.mix) if self._settings.mix in mixes else 0
        self._lists["target"].focus()

    def _named(self, target: str) -> Content:
        return literal(f"{target} (not here)", "dim") if target in self._no_exports else literal(target)

    @property
    def _lists(self) -> dict[str, PickList]:
        return {name: self.query_one(f"#export-{name}", PickList) for name in ("target", "quant", "mix")}

    def on_option_list_option_highlighted(self) -> None:
        """Say what the highlighted target writes."""
        chosen = self._lists["target"].highlighted
        if chosen is not None:
            target = TARGETS[chosen]
            absent = target == "ollama" and self._ollama is None
            more = "; no ollama is installed here, so the command after it is for you to run" if absent else ""
            text = f"{TARGET_TEXTS[target]}{more}"
            if reason := self._no_exports.get(target):
                text = f"not from this base: {reason}"
            self.query_one("#export-note", LiteralStatic).show(f"{target}: {text}")
            self.query_one("#export-register", TickBox).display = target == "ollama" and self._ollama is not None

    @property
    def _quant(self) -> str | None:
        """The chosen format, None for the document's or the base's own."""
        chosen = self._lists["quant"].highlighted or 0
        return QUANTS[chosen - 1] if chosen else None

    def on_option_list_option_selected(self, event: PickList.OptionSelected) -> None:
        """Enter goes on to the next field; on a line of the costs it chooses the format and how it is served."""
        if event.option_list.id == "export-costs":
            line = self._costs[event.option_index]
            self._lists["quant"].highlighted = QUANTS.index(line.quant) + 1
            self._lists["target"].highlighted = TARGETS.index("llama-server" if line.form == "apart" else "ollama")
        self.focus_next()

    def on_input_submitted(self) -> None:
        """Enter in the last field exports."""
        self.action_accept()

    def action_accept(self) -> None:
        """Export with what is chosen."""
        lists = self._lists
        target = TARGETS[lists["target"].highlighted or 0]
        if reason := self._no_exports.get(target):
            self.query_one("#export-last", LiteralStatic).show(
                literal(f"No {target} from this base: {reason}", "$error")
            )
            return
        mix = self._mixes[lists["mix"].highlighted or 0][0]
        if mix is not None and ":" in mix:
            try:
                parse_mix(mix, self._names, signed=True)
            except DlmTuiError as error:
                self.query_one("#export-last", LiteralStatic).show(literal(str(error), "$error"))
                return
        register = self.query_one("#export-register", TickBox)
        self.dismiss(
            ExportSettings(
                target=target,
                register=register.display and register.value,
                quant=self._quant,
                compare=self.query_one("#export-compare", TickBox).value,
                mix=mix,
                out=self.query_one(Input).value.strip() or None,
            )
        )

    def action_copy_command(self) -> None:
        """Copy the command of the last export."""
        if self._last:
            self.on_copy(self._last)
        else:
            none = f"{_NOTHING_YET[:-1]}: there is no command to copy."
            self.query_one("#export-last", LiteralStatic).show(literal(none, "$warning"))


def last_export_text(command: str | None, report: ExportReport | None) -> str:
    """The last export's command, parity and drift in a few lines."""
    if not command:
        return _NOTHING_YET
    lines = [f"Last export, to run next:\n  {command}"]
    if report is not None and (parity := report.parity):
        lines.append(
            f"Parity with {parity.runtime}: largest log-probability difference "
            f"{parity.max_abs_logprob_diff:.1e} nats over {counted(parity.prompts, 'prompt')}"
        )
    if report is not None and (cost := report.cost):
        lines.append(
            f"Read as {cost.dtype} it is {cost.mean_kl:.2g} nats from the workbench; "
            f"{cost.greedy_agree:.0%} of greedy tokens same"
        )
    return "\n".join([*lines, *_drift_lines(report.drift if report else None)])


def _drift_lines(drift: DriftFigures | None) -> list[str]:
    """The frozen mix against the live gate, then the uniform and the best fixed mix, then what that means."""
    if drift is None:
        return []
    share = "" if drift.changed_answers is None else f"; {drift.changed_answers:.0%} of greedy answers change"
    lines = [f"Freezing the gate costs {drift.kl:.3f} nats per prompt (KL at the next token){share}"]
    others = []
    for cost, name in ((drift.uniform, "A uniform mix"), (drift.best_static, "The best fixed mix")):
        share = "" if cost.changed_answers is None else f", {cost.changed_answers:.0%} of answers"
        others.append(f"{name}: {cost.kl:.3f} nats{share}")
    lines.append(". ".join(others))
    return [*lines, drift.verdict] if drift.verdict else lines
