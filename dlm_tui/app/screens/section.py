"""One section of the document: what kind it is, which adapter it trains, and its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.literal_text_area import LiteralTextArea
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal

KINDS = {
    "instruction": ("question and answer", "### Q\n\n### A\n"),
    "preference": ("preference pair", "### Prompt\n\n### Chosen\n\n### Rejected\n"),
    "prose": ("prose", ""),
}
_EVERY = "every adapter"


@dataclass(frozen=True)
class Draft:
    """What a person wrote; for a section that is there, only the content counts."""

    type: str
    adapter: str | None
    content: str


@dataclass(frozen=True)
class Tag:
    """The adapter a section is given to; None for all of them."""

    adapter: str | None


class SectionScreen(Dialog[Draft]):
    """Write a new section, or change the text of one. `problem` says why a draft cannot be taken, "" if it can."""

    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Write it"), ("dialog.close", "Cancel"))

    def __init__(
        self,
        title: str,
        problem: Callable[[Draft], str],
        names: Sequence[str] = (),
        marks: Mapping[str, Mark] | None = None,
        *,
        adapter: str | None = None,
        content: str | None = None,
        start: Draft | None = None,
    ) -> None:
        """`content` of a section that is there, or of a new one the `adapter` and what to `start` with."""
        super().__init__()
        self._title, self._problem = title, problem
        self._adapters: list[str | None] = [*names, None]
        self._start = start or Draft("instruction", adapter, KINDS["instruction"][1])
        self._marks, self._content = marks or {}, content

    @property
    def _is_new(self) -> bool:
        return self._content is None

    def compose_body(self) -> ComposeResult:
        """Kind and adapter of a new section, the text, and what is wrong with it."""
        if self._is_new:
            with Horizontal(id="section-lists"):
                with Vertical():
                    yield LiteralStatic("Kind", classes="field")
                    yield PickList(*(label for label, _ in KINDS.values()), id="section-kind", markup=False)
                with Vertical():
                    yield LiteralStatic("Trains", classes="field")
                    yield PickList(*_adapter_options(self._adapters, self._marks), id="section-adapter", markup=False)
        text = self._start.content if self._content is None else self._content
        yield LiteralTextArea(text, id="section-text", soft_wrap=True, tab_behavior="focus")
        yield LiteralStatic(id="section-problem")

    def on_mount(self) -> None:
        """Start in the text."""
        super().on_mount()
        self.retitle(self._title)
        if self._is_new:
            self.query_one("#section-kind", PickList).highlighted = list(KINDS).index(self._start.type)
            adapter = self._start.adapter
            chosen = self._adapters.index(adapter) if adapter in self._adapters else 0
            self.query_one("#section-adapter", PickList).highlighted = chosen
        text = self.query_one(TextArea)
        text.focus()
        text.move_cursor((1, 0) if self._is_new else text.document.end)
        self._check()

    @property
    def draft(self) -> Draft:
        """What stands in the dialog."""
        content = self.query_one(TextArea).text.strip("\n")
        if not self._is_new:
            return Draft("", None, content)
        adapter = self._adapters[self.query_one("#section-adapter", PickList).highlighted or 0]
        return Draft(self._kind, adapter, content)

    @property
    def _kind(self) -> str:
        return list(KINDS)[self.query_one("#section-kind", PickList).highlighted or 0]

    @on(OptionList.OptionHighlighted, "#section-kind")
    def _kind_changed(self) -> None:
        text = self.query_one(TextArea)
        # What the person has written stays; only an untouched form is replaced.
        if text.text in [form for _, form in KINDS.values()]:
            text.text = KINDS[self._kind][1]
            text.move_cursor((1 if text.text else 0, 0))
        self._check()

    @on(OptionList.OptionHighlighted, "#section-adapter")
    @on(TextArea.Changed)
    def _check(self) -> None:
        draft = self.draft
        forms = [form.strip("\n") for _, form in KINDS.values()]
        problem = "" if draft.content in forms else self._problem(draft)
        self.query_one("#section-problem", LiteralStatic).show(literal(problem, "$error"))

    @on(OptionList.OptionSelected)
    def _chosen(self) -> None:
        self.query_one(TextArea).focus()

    def action_accept(self) -> None:
        """Write it, if it can be written; else what is wrong stays in view."""
        problem = self._problem(self.draft)
        if problem:
            self.query_one("#section-problem", LiteralStatic).show(literal(problem, "bold $error"))
            return
        self.dismiss(self.draft)


class RetagScreen(Dialog[Tag]):
    """Which adapter a section trains."""

    TITLE_TEXT = "Which adapter does this section train?"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Give it"), ("dialog.close", "Cancel"))

    def __init__(self, names: Sequence[str], marks: Mapping[str, Mark], adapter: str | None) -> None:
        super().__init__()
        self._adapters: list[str | None] = [*names, None]
        self._marks, self._adapter = marks, adapter

    def compose_body(self) -> ComposeResult:
        """The adapters."""
        yield PickList(*_adapter_options(self._adapters, self._marks), id="retag-adapter", markup=False)

    def on_mount(self) -> None:
        """Start at the adapter it has."""
        super().on_mount()
        listing = self.query_one(PickList)
        listing.highlighted = self._adapters.index(self._adapter) if self._adapter in self._adapters else 0
        listing.focus()

    @on(OptionList.OptionSelected)
    def _chosen(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Take the marked one."""
        self.dismiss(Tag(self._adapters[self.query_one(PickList).highlighted or 0]))


def _adapter_options(adapters: Sequence[str | None], marks: Mapping[str, Mark]) -> list[Option]:
    return [Option(_adapter_words(name, marks.get(name)) if name else Content(f"  {_EVERY}")) for name in adapters]


def _adapter_words(name: str, mark: Mark | None) -> Content:
    return assemble((f"{mark.glyph} {name}", mark.color)) if mark else Content(f"  {name}")
