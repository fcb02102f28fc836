"""What kinds of loss there are, and what each of them is measured in: a loss is told, kept and drawn with its kind.

Two kinds have no axis in common, even where their units are called the same.
"""

from __future__ import annotations

import msgspec

SFT, GATE = "sft", "gate"
UNITS = {
    SFT: "nats per token",
    "dpo": "nats per pair",
    "dpo-hinge": "margin per pair",
    "dpo-ipo": "nats² per pair",
    "orpo": "nats per pair",
    "signed": "nats per token",
    GATE: "nats per prompt",
}
"""Kind -> unit. Validation losses are of the kind `sft`, whatever phase they are taken in."""


def loss_kind(phase: str, loss_type: str) -> str:
    """The kind of a training phase's loss; `loss_type` is the document's `preference.loss_type`, a choice of DPO's."""
    return phase if phase != "dpo" or loss_type == "sigmoid" else f"dpo-{loss_type}"


def unit_of(kind: str | None) -> str:
    """`nats per pair`; "" for a kind that is not known."""
    return UNITS.get(kind or "", "")


def short_unit_of(kind: str | None) -> str:
    """`nats/pair`; "" for a kind that is not known."""
    return _short(unit_of(kind))


def loss_name(kind: str | None) -> str:
    """`loss` for what everybody means by it, `dpo loss` for any other kind."""
    return "loss" if kind in (None, SFT) else f"{kind} loss"


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A loss in its `unit`. `kind` is a key of `UNITS`; None where nobody has recorded it, and `unit` is then ""."""

    kind: str | None
    value: float
    unit: str = ""

    @classmethod
    def of(cls, kind: str | None, value: float) -> Loss:
        """With the unit of its kind."""
        return cls(kind=kind, value=value, unit=unit_of(kind))

    @property
    def words(self) -> str:
        """`dpo loss 0.006 nats per pair`."""
        return f"{loss_name(self.kind)} {self.value:.3f} {self.unit}".rstrip()

    @property
    def short(self) -> str:
        """`dpo 0.006 nats/pair`, `loss 0.351 nats/token`."""
        return f"{loss_name(self.kind).removesuffix(' loss')} {self.value:.3f} {_short(self.unit)}".rstrip()


def _short(unit: str) -> str:
    return unit.replace(" per ", "/")
