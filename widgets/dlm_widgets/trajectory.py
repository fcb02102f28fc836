"""How the weights moved while the prompt grew: a stacked chart, one column per prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dlm_widgets.adapter_palette import rich_color
from dlm_widgets.sanitize import fit, sanitize

_AXIS = 2  # cells for the weights' axis, from 0 to 1


@dataclass(frozen=True)
class Layer:
    """One adapter's layer."""

    name: str
    glyph: str
    color: str


class Trajectory(Widget):
    """Weights over prompt prefixes, stacked to full height, ending in glyphs; without colour all of it is."""

    DEFAULT_CSS = "Trajectory { height: 5; }"

    bands: reactive[tuple[Layer, ...]] = reactive(())
    steps: reactive[tuple[Mapping[str, float], ...]] = reactive(())
    ends: reactive[tuple[str, str]] = reactive(("", ""))

    def show(
        self, layers: Sequence[Layer], steps: Sequence[Mapping[str, float]], ends: tuple[str, str] = ("", "")
    ) -> None:
        """Each step maps adapter -> weight in [0, 1], together about one; `ends` are the first and last token."""
        self.bands = tuple(layers)
        self.steps = tuple(steps)
        self.ends = ends

    def render_line(self, y: int) -> Strip:
        """Row `y` from the top: each column shows the layer at that height; the last row holds the ends."""
        width, height, base = self.size.width - _AXIS, self.size.height - 1, self.rich_style
        if not self.steps or not self.bands or width < 1:
            return Strip.blank(self.size.width, base)
        columns = min(width, max(len(self.steps), 1) * max(1, min(8, width // len(self.steps))))
        quiet = base + Style(dim=True)
        if y == height:
            first, last = (sanitize(end.strip(), one_line=True) for end in self.ends)
            room = columns - cell_len(last) - 1
            words = f"{fit(first, room)} {last}" if room >= 1 else fit(last, columns)
            return Strip([Segment(" " * _AXIS + words, quiet)]).adjust_cell_length(self.size.width, base)
        label = {0: "1", height - 1: "0"}.get(y, "")
        axis = Segment(label.ljust(_AXIS), quiet)
        return Strip([axis, *self._columns(y, height, columns, base)]).adjust_cell_length(self.size.width, base)

    def _columns(self, y: int, height: int, columns: int, base: Style) -> list[Segment]:
        level = 1.0 - (y + 0.5) / height
        segments: list[Segment] = []
        for column in range(columns):
            step = self.steps[min(len(self.steps) - 1, column * len(self.steps) // columns)]
            layer = self._layer_at(step, level)
            char = layer.glyph if column == columns - 1 or self.app.no_color else "\u2588"
            style = base + Style(color=rich_color(layer.color))
            if segments and segments[-1].style == style:
                segments[-1] = Segment(segments[-1].text + char, style)
            else:
                segments.append(Segment(char, style))
        return segments

    def _layer_at(self, step: Mapping[str, float], level: float) -> Layer:
        total = 0.0
        for layer in reversed(self.bands):
            weight = step.get(layer.name, 0.0)
            total += weight if weight == weight else 0.0
            if level <= total:
                return layer
        return self.bands[0]
