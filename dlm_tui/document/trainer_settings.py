"""What trainers offer and the `.dlm` schema has no key for: the side file's `[training]` table. No torch."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e4)]
_Ratio = Annotated[float, msgspec.Meta(ge=1, le=1e4)]


class TrainerSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How adapters are trained, beside what the document says.

    `packing` lays the rows of a batch end to end instead of padding them, each row seeing only itself;
    `length_buckets` puts rows of like length into a batch; `activation_checkpointing` computes activations again
    instead of keeping them. `neftune_alpha` is the size of the noise on embedded tokens (Jain et al. 2023), `rslora`
    scales by alpha/√rank (Kalajdzievski 2023), `loraplus_ratio` is how much faster `lora_B` learns than `lora_A`
    (Hayou et al. 2024). `early_answers` looks at held-out loss and answers while it trains, and changes nothing of it.
    """

    packing: bool = True
    length_buckets: bool = False
    activation_checkpointing: bool = False
    neftune_alpha: _Positive | None = None
    rslora: bool = False
    loraplus_ratio: _Ratio | None = None
    early_answers: bool = True

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what is learned."""
        values = msgspec.structs.asdict(self)
        del values["early_answers"]
        return values

    def changed(self) -> dict[str, Any]:
        """The settings that are not the defaults."""
        defaults = TrainerSettings()
        values = msgspec.structs.asdict(self)
        return {name: value for name, value in values.items() if value != getattr(defaults, name)}
