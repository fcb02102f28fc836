"""How the weights moved while the prompt grew: a stacked chart, one column per prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dlm_widgets.adapter_palette import rich_color


@dataclass(frozen=True)
class Layer:
    """One adapter's layer."""

    name: str
    glyph: str
    color: str


class Trajectory(Widget):
    """Weights over prompt prefixes, stacked to full height, ending in glyphs; without colour all of it is."""

    DEFAULT_CSS = "Trajectory { height: 4; }"

    bands: reactive[tuple[Layer, ...]] = reactive(())
    steps: reactive[tuple[Mapping[str, float], ...]] = reactive(())

    def show(self, layers: Sequence[Layer], steps: Sequence[Mapping[str, float]]) -> None:
        """Each step is a mapping adapter -> weight in [0, 1] that sums to about one."""
        self.bands = tuple(layers)
        self.steps = tuple(steps)

    def render_line(self, y: int) -> Strip:
        """Row `y` from the top: each column shows the layer that lies at that height."""
        width, height = self.size.width, self.size.height
        base = self.rich_style
        if not self.steps or not self.bands or not width:
            return Strip.blank(width, base)
        columns = min(width, max(len(self.steps), 1) * max(1, min(8, width // len(self.steps))))
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
        return Strip(segments).adjust_cell_length(width, base)

    def _layer_at(self, step: Mapping[str, float], level: float) -> Layer:
        total = 0.0
        for layer in reversed(self.bands):
            weight = step.get(layer.name, 0.0)
            total += weight if weight == weight else 0.0
            if level <= total:
                return layer
        return self.bands[0]
