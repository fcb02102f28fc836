"""What to train and how: each adapter's kind, and below it what the training will do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.plain_numbers import number, whole_number
from dlm_tui.store.adapter_kind import SELECTIONS, AdapterKind, KindChoices, Parameterization, Selection, kind_words
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal
from dlm_widgets.tick_box import TickBox

_KINDS: tuple[tuple[Parameterization, Selection | None, str], ...] = (
    ("lora", None, "LoRA"),
    *(("pissa", selection, f"PiSSA {selection}") for selection in SELECTIONS),
)


@dataclass(frozen=True)
class TrainOrder:
    """What a person chose; `calibrate` is on the saved prompts instead of the sections."""

    adapters: tuple[str, ...]
    choices: KindChoices
    calibrate: bool = False


class TrainScreen(Dialog[TrainOrder]):
    """Adapters on the left, how the highlighted one is trained beside it; every change is planned at once.

    `on_changed` is given each order that can be read; whoever plans answers with `show_plan` or `show_problem`.
    """

    TITLE_TEXT = "Train"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Train"),
        ("dialog.mark", "In or out"),
        ("dialog.close", "Cancel"),
    )

    def __init__(self, kinds: Mapping[str, AdapterKind], marks: Mapping[str, Mark], saved_prompts: int) -> None:
        """`kinds` has every adapter with no question open; `saved_prompts` is how many prompt sets hold."""
        super().__init__()
        self._kinds, self._marks, self._saved = dict(kinds), dict(marks), saved_prompts
        self._names = list(kinds)
        self._trained = set(self._names)
        self._problem = ""
        self.on_changed: Callable[[TrainOrder], object] = lambda order: None

    def compose_body(self) -> ComposeResult:
        """Adapters, kinds, numbers; then the plan."""
        with Horizontal(id="train-lists"):
            with Vertical(id="train-left"):
                yield LiteralStatic("Adapters", classes="field")
                yield PickList(id="train-adapters", markup=False)
            with Vertical(id="train-middle"):
                yield LiteralStatic("Kind", classes="field")
                yield PickList(*[Option(literal(text)) for *_, text in _KINDS], id="train-kind", markup=False)
            with Vertical(id="train-right"):
                yield LiteralStatic("Rank", classes="field")
                yield Input(id="train-rank", max_length=4)
                yield TickBox("Signed, ±C", id="train-signed")
                yield Input(id="train-coefficient", max_length=6)
        yield TickBox(f"Calibrate selections on the {self._saved} saved prompts", False, id="train-calibrate")
        yield LiteralStatic("planning\u2026", id="train-plan")

    def on_mount(self) -> None:
        """Start with everything as it was trained before."""
        super().on_mount()
        self.query_one("#train-calibrate").display = self._saved > 0
        self._list_adapters(0)
        self._show_kind()
        self.query_one("#train-adapters").focus()
        self._changed()

    @property
    def _marked(self) -> str:
        return self._names[self.query_one("#train-adapters", PickList).highlighted or 0]

    def _list_adapters(self, index: int) -> None:
        listing = self.query_one("#train-adapters", PickList)
        listing.set_options([Option(self._row(name)) for name in self._names])
        listing.highlighted = index

    def _row(self, name: str) -> Content:
        mark, kind = self._marks.get(name), self._kinds[name]
        words = kind_words(kind.parameterization or "lora", kind.selection, kind.rank, kind.signed, kind.coefficient)
        return assemble(
            "\u2714 " if name in self._trained else "  ",
            (f"{mark.glyph} {name}" if mark else name, mark.color if mark else ""),
            (f" {words}", "dim"),
        )

    def _show_kind(self) -> None:
        kind = self._kinds[self._marked]
        chosen = next(n for n, (p, s, _) in enumerate(_KINDS) if (p, s) == (kind.parameterization, kind.selection))
        self.query_one("#train-kind", PickList).highlighted = chosen
        self.query_one("#train-rank", Input).value = str(kind.rank)
        self.query_one("#train-signed", TickBox).value = bool(kind.signed)
        coefficient = self.query_one("#train-coefficient", Input)
        coefficient.value = f"{kind.coefficient or 1.0:g}"
        coefficient.display = bool(kind.signed)

    @on(OptionList.OptionHighlighted, "#train-adapters")
    def _other_adapter(self) -> None:
        self._show_kind()

    @on(OptionList.OptionSelected, "#train-adapters")
    def action_mark(self) -> None:
        """Train the highlighted adapter, or leave it as it is."""
        self._trained ^= {self._marked}
        self._list_adapters(self._names.index(self._marked))
        self._changed()

    @on(OptionList.OptionHighlighted, "#train-kind")
    @on(Input.Changed)
    @on(TickBox.Changed)
    def _edited(self) -> None:
        """Take what stands in the widgets as the highlighted adapter's kind."""
        parameterization, selection, _ = _KINDS[self.query_one("#train-kind", PickList).highlighted or 0]
        signed = self.query_one("#train-signed", TickBox).value
        self.query_one("#train-coefficient").display = signed
        try:
            kind = AdapterKind(
                parameterization=parameterization,
                selection=selection,
                rank=whole_number(self.query_one("#train-rank", Input).value),
                signed=signed,
                coefficient=number(self.query_one("#train-coefficient", Input).value) if signed else None,
            )
        except ValueError:
            self.show_problem("Rank is a whole number, C a number above 0.")
            return
        self._kinds[self._marked] = kind
        index = self._names.index(self._marked)
        self.query_one("#train-adapters", PickList).replace_option_prompt_at_index(index, self._row(self._marked))
        self._changed()

    @property
    def _order(self) -> TrainOrder:
        trained = tuple(name for name in self._names if name in self._trained)
        return TrainOrder(
            trained,
            KindChoices(by_name={name: self._kinds[name] for name in trained}),
            self.query_one("#train-calibrate", TickBox).value,
        )

    def _changed(self) -> None:
        if not self._trained:
            self.show_problem("No adapter is chosen.")
            return
        self._problem = ""
        self.on_changed(self._order)

    def show_plan(self, rows: Sequence[Content]) -> None:
        """What the training will do."""
        self.query_one("#train-plan", LiteralStatic).show(Content("\n").join(rows))

    def show_problem(self, text: str) -> None:
        """Why it cannot be trained so."""
        self._problem = text
        self.query_one("#train-plan", LiteralStatic).show(literal(text, "$error"))

    def action_accept(self) -> None:
        """Train, unless it cannot be trained so."""
        if not self._problem:
            self.dismiss(self._order)
