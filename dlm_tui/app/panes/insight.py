"""Why the gate chose as it did, and whether the adapters change anything here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from dlm_tui.app.panes.pane import Pane
from dlm_tui.engine.protocol import Routed, Scored, TokenAttribution
from dlm_tui.model.views import adapter_of
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, literal
from dlm_widgets.throttled import Throttled
from dlm_widgets.token_heat import HeatToken, TokenHeat
from dlm_widgets.trajectory import Layer, Trajectory


class InsightPane(Pane, Throttled):
    """Token pulls, trajectory, whether the prompt is unlike the training prompts, and effect sizes of one prompt."""

    TITLE = "Insight"
    JUMP = "n"

    def __init__(self) -> None:
        super().__init__(id="insight")
        self._hint = "Type a prompt to see which words move the gate."
        self._effect = Content("")
        self._route: _Explained | None = None
        self._scored: Scored | None = None

    def compose(self) -> ComposeResult:
        """Headings and their drawings."""
        with VerticalScroll(id="insight-scroll"):
            yield LiteralStatic(id="insight-hint")
            yield LiteralStatic("Which words pull where", classes="heading", id="heat-heading")
            yield TokenHeat(id="pulls")
            yield LiteralStatic("Does it change the answer?", classes="heading", id="effect-heading")
            yield LiteralStatic(id="effect")
            yield LiteralStatic("How the gate moved while the prompt grew", classes="heading", id="trajectory-heading")
            yield Trajectory(id="trajectory")

    def on_mount(self) -> None:
        """Nothing to explain yet."""
        super().on_mount()
        self.ask()

    def clear(self, hint: str) -> None:
        """Say why there is nothing to see."""
        self._hint, self._route, self._effect, self._scored = hint, None, Content(""), None
        self.ask()

    def recolour(self, marks: Mapping[str, Mark], background: str) -> None:
        """Show what is shown in other colours."""
        if self._route is not None:
            self._route = replace(self._route, marks=dict(marks), background=background)
        if self._scored is not None:
            self.show_scores(self._scored, marks)
        self.ask()

    def show_route(self, routed: Routed, names: Sequence[str], marks: Mapping[str, Mark], background: str) -> None:
        """Pulls and trajectory of a prompt that was routed with `explain`."""
        if routed.attributions:
            self._hint, self._route = "", _Explained(routed, tuple(names), dict(marks), background)
            self.ask()

    def show_scores(self, scored: Scored, marks: Mapping[str, Mark]) -> None:
        """Effect sizes: KL to the base at the next token in nats, and how far above random adapters that is."""
        self._scored = scored
        parts: list[str | tuple[str, str]] = []
        for score in scored.views:
            mark = marks.get(adapter_of(score.view) or "")
            lead = (f"{mark.glyph} {score.view}", mark.color) if mark else (score.view, "bold")
            parts += [lead, f" changes the next token by {score.kl:.2f} nats", sigma_text(score.z), "\n"]
        if scored.null_mean is not None and scored.nulls:
            parts.append((f"noise: {scored.nulls} random adapters change it by {scored.null_mean:.3f} nats", "dim"))
        self._hint, self._effect = "", assemble(*parts)
        self.ask()

    def effect_pending(self, text: str) -> None:
        """The effect size is being worked out, or cannot be."""
        self._effect, self._scored = literal(text, "dim"), None
        self.ask()

    def draw(self) -> None:
        """What is known of the prompt; parts without anything to see are left out."""
        self._show_line("#insight-hint", literal(self._hint, "dim"))
        self._show_line("#effect", self._effect)
        self.query_one("#effect-heading").display = bool(self._effect.plain)
        explained = self._route
        steps = explained.routed.trajectory or [] if explained else []
        for part in ("#heat-heading", "#pulls"):
            self.query_one(part).display = explained is not None
        for part in ("#trajectory-heading", "#trajectory"):
            self.query_one(part).display = len(steps) > 1
        if explained is None:
            self.retitle()
            return
        self.query_one("#pulls", TokenHeat).show_tokens(explained.tokens(), background=explained.background)
        marks = explained.marks
        self.query_one("#trajectory", Trajectory).show(
            [Layer(name, marks[name].glyph, marks[name].color) for name in explained.names if name in marks],
            steps,
            ends=explained.ends,
        )
        self.retitle(ood_text(explained.routed))

    def _show_line(self, part: str, content: Content) -> None:
        line = self.query_one(part, LiteralStatic)
        line.show(content)
        line.display = bool(content.plain)


@dataclass(frozen=True)
class _Explained:
    """A route with its pulls, and how the adapters looked then."""

    routed: Routed
    names: tuple[str, ...]
    marks: Mapping[str, Mark]
    background: str

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last token."""
        texts = [token.text for token in _by_text(self.routed.attributions or [])]
        return (texts[0], texts[-1]) if texts else ("", "")

    def tokens(self) -> list[HeatToken]:
        """Each token in the colour of the adapter it pulls most towards, as strong as against the strongest."""
        attributions = _by_text(self.routed.attributions or [])
        strongest = max((abs(v) for token in attributions for v in token.attribution.values()), default=0.0) or 1.0
        tokens = []
        for token in attributions:
            name, value = max(token.attribution.items(), key=lambda item: item[1], default=("", 0.0))
            mark = self.marks.get(name, Mark("", "#8aa4c8"))
            tokens.append(HeatToken(token.text, max(0.0, value) / strongest, mark.color, mark.glyph))
        return tokens


def _by_text(tokens: Sequence[TokenAttribution]) -> list[TokenAttribution]:
    """The tokens, those that share a character (its bytes) as one, with the sum of what they pull."""
    found: list[TokenAttribution] = []
    for token in tokens:
        before = found[-1] if found else None
        if before is None or token.start >= before.end:
            found.append(token)
            continue
        pull = {name: value + token.attribution.get(name, 0.0) for name, value in before.attribution.items()}
        text = before.text + token.text[max(0, before.end - token.start) :]
        end = max(before.end, token.end)
        found[-1] = TokenAttribution(text=text, start=before.start, end=end, attribution=pull)
    return found


def sigma_text(z: float | None) -> str:
    """How far above the noise, in words."""
    if z is None:
        return ""
    if z < 2.0:
        return ", no more than noise would"
    return f", {z:.1f}\u03c3 above noise"


def ood_text(routed: Routed) -> Content:
    """The hint that a prompt is unlike the training prompts."""
    if routed.is_ood:
        return Content.styled("unlike anything trained", "bold $warning")
    if routed.ood_score is not None:
        return Content.styled(f"unlike {routed.ood_score:.2f}", "dim")
    return Content("")
