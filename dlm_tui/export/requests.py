"""What an export is asked for, and what it returns. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.export.choices import QUANTS, TARGETS

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.gate import Gate
    from dlm_tui.model import Base, MixedModel
    from dlm_tui.store import Store


class ExportRefused(DlmTuiError):
    """The export would be wrong, incomplete or in somebody's way; nothing was written (exit code 1)."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """One export. `mix` is a spec such as `a:0.7,b:0.3`, `uniform` or `best`; None is the gate's static mean.

    `verify` None means: when the runtime is installed. `out` None is the store's own exports folder.
    """

    target: str = "peft"
    quant: str = "f16"
    mix: str | None = None
    adapter: str | None = None
    signed: bool = False
    out: str | None = None
    verify: bool | None = None
    drift: bool = True
    legacy_adapter: bool = False

    def checked(self) -> ExportRequest:
        """This request with the quantisation in lower case. Raises UsageError for anything unknown or contradictory."""
        quant = self.quant.lower()
        if self.target not in TARGETS:
            raise UsageError(f"no export target is called {self.target!r} (there are {', '.join(TARGETS)})")
        if quant not in QUANTS:
            hint = "; K-quants are made from an f16 export by llama.cpp's llama-quantize" if "_k" in quant else ""
            raise UsageError(f"no quantisation is called {self.quant!r} (there are {', '.join(QUANTS)}){hint}")
        if self.mix is not None and self.adapter is not None:
            raise UsageError("--mix and --adapter exclude each other: one adapter alone is a mix already")
        if self.signed and self.mix is None:
            raise UsageError("--signed allows negative weights in --mix, and no --mix is given")
        if self.legacy_adapter and self.target != "ollama":
            raise UsageError("--ollama-legacy-adapter belongs to the target ollama")
        return ExportRequest(**{**self.__dict__, "quant": quant})


@dataclass(frozen=True)
class ExportResult:
    """A finished export: its manifest, the folder it lies in, and what a person types next."""

    manifest: dict[str, Any]
    folder: Path
    next_command: str
    notes: list[str] = field(default_factory=list)


class Session(Protocol):
    """What an export needs of an open document; engine.session.Session has it."""

    @property
    def document(self) -> Document: ...

    @property
    def store(self) -> Store: ...

    @property
    def base(self) -> Base: ...

    @property
    def model(self) -> MixedModel: ...

    @property
    def gate(self) -> Gate | None: ...
