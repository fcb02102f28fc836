"""Text whose pieces are tinted by a number each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.color import Color, ColorParseError
from textual.content import Content

from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import sanitize


@dataclass(frozen=True)
class HeatToken:
    """A piece of text, how strong (in [0, 1]) and in which colour; `glyph` says the same without colour."""

    text: str
    strength: float
    color: str
    glyph: str = ""


class TokenHeat(LiteralStatic):
    """Tokens with a background as strong as their value; strong ones also carry a glyph."""

    DEFAULT_CSS = "TokenHeat { height: auto; }"

    def show_tokens(self, tokens: Sequence[HeatToken], *, background: str = "#14171c", glyph_from: float = 0.6) -> None:
        """Show these tokens; strengths are clamped to [0, 1], NaN counts as 0."""
        self.show(heat_content(tokens, background, glyph_from))


def heat_content(tokens: Sequence[HeatToken], background: str, glyph_from: float = 0.6) -> Content:
    """The tokens as Content. Colours that cannot be blended (terminal colours) show strength by bold and underline."""
    parts: list[str | tuple[str, str]] = []
    for token in tokens:
        text = sanitize(token.text)
        style = tint(token.color, token.strength, background)
        if not style:
            parts.append(text)
            continue
        starts_word = not parts or text[:1].isspace()
        if token.glyph and token.strength >= glyph_from and starts_word:
            lead = len(text) - len(text.lstrip())
            text = text[:lead] + token.glyph + text[lead:]
        parts.append((text, style))
    return Content.assemble(*parts)


def tint(color: str, strength: float, background: str) -> str:
    """The style of a strength, clamped to [0, 1], NaN being 0; "" where there is nothing to see."""
    strength = min(1.0, max(0.0, strength)) if strength == strength else 0.0
    if strength < 0.05:
        return ""
    try:
        ink, ground = Color.parse(color), Color.parse(background)
    except ColorParseError:
        return "underline bold" if strength > 0.5 else "underline"
    if ink.ansi is not None or ground.ansi is not None:
        return "underline bold" if strength > 0.5 else "underline"
    mixed = ground.blend(ink, 0.15 + 0.6 * strength)
    return f"{mixed.get_contrast_text(1.0).hex} on {mixed.hex}"
