"""Named mixes: saved from the desk, put back on it, compared as views, exported."""

from __future__ import annotations

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.export import Export
from dlm_tui.app.controllers.generation import Generation
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.mix import MixChoice
from dlm_tui.document.named_mixes import NamedMixes
from dlm_tui.model.views import custom


class SavedMixes:
    """Does with saved mixes what the dialog was left for."""

    def __init__(self, context: Context, mixing: Mixing, generation: Generation, export: Export) -> None:
        self._context, self._mixing, self._generation, self._export = context, mixing, generation, export

    def open(self) -> None:
        """All mixes that have a name."""
        from dlm_tui.app.screens.named_mixes import NamedMixesScreen

        context = self._context
        dialog = NamedMixesScreen(
            NamedMixes(context.setup.path), self._mixing.coefficients(), context.names, context.marks
        )
        context.ui.open_dialog(dialog, self._chosen)

    def _chosen(self, choice: MixChoice | None) -> None:
        match choice:
            case MixChoice(what="recall", mixes=mixes):
                for name, mix in mixes.items():
                    problems = self._mixing.bring_back(mix, {}, "custom")
                    words = " ".join([f"{name} is on the desk.", *problems])
                    self._context.ui.say(words, warning=bool(problems))
            case MixChoice(what="compare", mixes=mixes):
                named = [custom(mix, name=f"mix:{name}") for name, mix in mixes.items()]
                self._generation.ask([self._mixing.view(), *named])
            case MixChoice(what="export", mixes=mixes):
                self._export.open(next(iter(mixes)))
