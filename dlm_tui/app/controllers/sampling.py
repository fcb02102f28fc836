"""How answers are sampled: remembered for the document, shown where the prompt is typed, changed with one key each."""

from __future__ import annotations

import msgspec

from dlm_tui.app.config import SamplingSettings
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.controllers.surfaces import TitledSurface

TEMPERATURES = (0.0, 0.4, 0.7, 1.0, 1.3)
"""What one key goes through."""
_WARM = 0.7  # at 0 every seed gives the same answer
_SEEDS = 2**31


class AnswerSampling:
    """Temperature, top-p, tokens, seed and number of samples of the next answer."""

    def __init__(self, context: Context, prompt: TitledSurface) -> None:
        self._context, self._prompt = context, prompt
        self.accepted: Signal[[]] = Signal()
        """The dialog was left with settings to ask with."""

    @property
    def settings(self) -> SamplingSettings:
        """Those of the document, else the configuration's."""
        return self._context.state.sampling or self._context.config.generate.sampling()

    def use(self, settings: SamplingSettings) -> None:
        """Remember these for the document."""
        self._context.state.sampling = settings
        self._context.saver.soon()
        self.show()

    def show(self) -> None:
        """Say on the prompt's edge how the next answer is sampled, where it is."""
        self._prompt.retitle(*sampling_words(self.settings))

    def next_seed(self) -> None:
        """Seeds that the last answers did not have. At temperature 0 they would change nothing, so it rises."""
        now = self.settings
        temperature = now.temperature
        if not temperature:
            temperature = _WARM
            self._context.ui.say(
                f"At temperature 0 every seed gives the same answer, so it is {_WARM:g} now; "
                f"{self._context.key('prompt.sampling')} changes it."
            )
        seed = (now.seed + now.samples) % _SEEDS
        self.use(msgspec.structs.replace(now, seed=seed, temperature=temperature))

    def next_temperature(self) -> None:
        """The next of some usual temperatures, after the highest the lowest."""
        now = self.settings
        temperature = next((one for one in TEMPERATURES if one > now.temperature), TEMPERATURES[0])
        self.use(msgspec.structs.replace(now, temperature=temperature))

    def open(self) -> None:
        """Change everything at once."""
        from dlm_tui.app.screens.sampling import SamplingScreen

        self._context.ui.open_dialog(SamplingScreen(self.settings), self._chosen)

    def _chosen(self, settings: SamplingSettings | None) -> None:
        if settings is not None:
            self.use(settings)
            self.accepted.emit()


def sampling_words(settings: SamplingSettings) -> list[str]:
    """`temperature 0.7`, `seed 3 to 6`; nothing for one greedy answer."""
    words = []
    if settings.temperature:
        words.append(f"temperature {settings.temperature:g}")
    if settings.samples > 1:
        words.append(f"seeds {settings.seed} to {settings.seed + settings.samples - 1}")
    elif settings.temperature:
        words.append(f"seed {settings.seed}")
    return words
