"""Why the gate chose as it did, and whether the adapters change anything here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from dlm_tui.app.panes.pane import Pane
from dlm_tui.engine.protocol import Routed, Scored
from widgets.line import Line
from widgets.marks import Mark
from widgets.plain import assemble, literal
from widgets.token_heat import HeatToken, TokenHeat
from widgets.trajectory import Layer, Trajectory


class InsightPane(Pane):
    """Token pulls, trajectory, the unlike-training hint and effect sizes of one prompt."""

    TITLE = "Insight"
    JUMP = "n"

    def __init__(self) -> None:
        super().__init__(id="insight")

    def compose(self) -> ComposeResult:
        """Headings and their drawings."""
        with VerticalScroll(id="insight-scroll"):
            yield Line(id="insight-hint")
            yield Line("Which words pull where", classes="heading", id="heat-heading")
            yield TokenHeat(id="pulls")
            yield Line("Does it change the answer?", classes="heading", id="effect-heading")
            yield Line(id="effect")
            yield Line("How the gate moved while the prompt grew", classes="heading", id="trajectory-heading")
            yield Trajectory(id="trajectory")

    def on_mount(self) -> None:
        """Nothing to explain yet."""
        super().on_mount()
        self.clear("Type a prompt to see which words move the gate.")

    def clear(self, hint: str) -> None:
        """Say why there is nothing to see."""
        self.query_one("#insight-hint", Line).show(literal(hint, "dim"))
        self._toggle("#insight-hint", True)
        for part in (
            "#heat-heading",
            "#pulls",
            "#trajectory-heading",
            "#trajectory",
            "#effect-heading",
            "#effect",
        ):
            self._toggle(part, False)
        self.retitle()

    def _toggle(self, part: str, on: bool) -> None:
        self.query_one(part).display = on

    def show_route(self, routed: Routed, names: Sequence[str], marks: Mapping[str, Mark], background: str) -> None:
        """Pulls and trajectory of a prompt that was routed with `explain`."""
        if not routed.pulls:
            return
        self._toggle("#insight-hint", False)
        strongest = max((abs(v) for token in routed.pulls for v in token.pull.values()), default=0.0) or 1.0
        tokens = []
        for token in routed.pulls:
            name, value = max(token.pull.items(), key=lambda item: item[1], default=("", 0.0))
            mark = marks.get(name, Mark("", "#8aa4c8"))
            tokens.append(HeatToken(token.text, max(0.0, value) / strongest, mark.color, mark.glyph))
        self.query_one("#pulls", TokenHeat).show_tokens(tokens, background=background)
        for part in ("#heat-heading", "#pulls"):
            self._toggle(part, True)
        steps = routed.trajectory or []
        self.query_one("#trajectory", Trajectory).show(
            [Layer(name, marks[name].glyph, marks[name].color) for name in names if name in marks], steps
        )
        for part in ("#trajectory-heading", "#trajectory"):
            self._toggle(part, len(steps) > 1)
        self.retitle(unlike_text(routed))

    def show_scores(self, scored: Scored, marks: Mapping[str, Mark]) -> None:
        """Effect sizes: KL to the base at the next token in nats, and how far above random adapters that is."""
        parts: list[str | tuple[str, str]] = []
        for score in scored.views:
            mark = marks.get(score.view)
            lead = (f"{mark.glyph} {score.view}", mark.color) if mark else (score.view, "bold")
            parts += [lead, f" changes the next token by {score.kl:.2f} nats", sigma_text(score.z), "\n"]
        if scored.null_mean is not None and scored.nulls:
            parts.append((f"noise: {scored.nulls} random adapters change it by {scored.null_mean:.3f} nats", "dim"))
        self.query_one("#effect", Line).show(assemble(*parts))
        self._toggle("#insight-hint", False)
        self._toggle("#effect-heading", True)
        self._toggle("#effect", True)

    def effect_pending(self, text: str) -> None:
        """The effect size is being worked out, or cannot be."""
        self.query_one("#effect", Line).show(literal(text, "dim"))
        self._toggle("#effect", True)
        self._toggle("#effect-heading", True)


def sigma_text(z: float | None) -> str:
    """How far above the noise, in words."""
    if z is None:
        return ""
    if z < 2.0:
        return ", no more than noise would"
    return f", {z:.1f}\u03c3 above noise"


def unlike_text(routed: Routed) -> Content:
    """The hint that a prompt is unlike the training prompts."""
    if routed.unlike:
        return Content.styled("unlike anything trained", "bold $warning")
    if routed.novelty is not None:
        return Content.styled(f"novelty {routed.novelty:.2f}", "dim")
    return Content("")
