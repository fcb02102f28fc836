"""What an export is asked for, and what it returns. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dlm_tui.document.named_mixes import is_mix_name
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.export.choices import EVEN_QUANTS, GGUF_TARGETS, MERGED_QUANTS, QUANTS, TARGETS
from dlm_tui.meant import meant

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.export.cost_table import FormatCost
    from dlm_tui.gate import Gate
    from dlm_tui.model import Base, MixedModel
    from dlm_tui.store import Store


class ExportRefused(DlmTuiError):
    """The export would be wrong, incomplete or in somebody's way; nothing was written (exit code 1)."""


def known_quant(name: str) -> str:
    """A quantisation in lower case. Raises UsageError for one that there is not."""
    quant = name.strip().lower()
    if quant not in QUANTS:
        known, near = ", ".join(QUANTS), meant(quant, QUANTS, 0.3)
        raise UsageError(f"no quantisation is called {name!r} (there are {known}){near}")
    return quant


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """One export. `mix` is a spec such as `a:0.7,b:0.3`, the name of a saved one, `uniform` or `best`; None is the
    gate's static mean.

    `quant` None is the document's `export.default_quant` for GGUF and the base's own dtype for `merged`. `imatrix` is
    `auto` (the document's own text), a text file, or an importance matrix. `verify` None means: when the runtime is
    installed. `out` None is the store's own exports folder.
    `comparison` is what was measured before the format was chosen, for the manifest.
    `gate` live takes the gate along with a server that asks it for every prompt.
    """

    target: str = "peft"
    quant: str | None = None
    mix: str | None = None
    adapter: str | None = None
    signed: bool = False
    out: str | None = None
    imatrix: str | None = None
    verify: bool | None = None
    drift: bool = True
    legacy_adapter: bool = False
    gate: Literal["static", "live"] = "static"
    comparison: tuple[FormatCost, ...] = ()

    @property
    def mix_name(self) -> str | None:
        """The name of the saved mix that is exported, if it is one; folder and served model are called by it."""
        if self.mix is None or self.mix in ("uniform", "best") or not is_mix_name(self.mix):
            return None
        return self.mix.strip()

    def checked(self) -> ExportRequest:
        """This request with the quantisation in lower case. Raises UsageError for anything unknown or contradictory."""
        quant = known_quant(self.quant) if self.quant is not None else None
        if self.target not in TARGETS:
            known, near = ", ".join(TARGETS), meant(self.target, TARGETS)
            raise UsageError(f"no export target is called {self.target!r} (there are {known}){near}")
        if quant is not None and self.target == "merged" and quant not in MERGED_QUANTS:
            raise UsageError(
                f"merged safetensors are written as {', '.join(MERGED_QUANTS)}, not {quant}: "
                f"{' and '.join(GGUF_TARGETS)} take that"
            )
        if self.imatrix is not None and self.target not in GGUF_TARGETS:
            raise UsageError(f"--imatrix belongs to the targets {' and '.join(GGUF_TARGETS)}")
        if self.imatrix is not None and quant in EVEN_QUANTS:
            raise UsageError(f"--imatrix changes nothing under {quant}")
        if self.mix is not None and self.adapter is not None:
            raise UsageError("--mix and --adapter exclude each other: one adapter alone is a mix already")
        if self.signed and self.mix is None:
            raise UsageError("--signed allows negative weights in --mix, and no --mix is given")
        if self.gate not in ("static", "live"):
            raise UsageError(f"the gate is exported static or live, not {self.gate!r}")
        if self.gate == "live" and self.target != "llama-server":
            raise UsageError("--gate live belongs to the target llama-server: no other runtime can ask the gate")
        if self.gate == "live" and (self.mix is not None or self.adapter is not None):
            raise UsageError("--gate live asks the gate for every prompt: --mix and --adapter fix the weights")
        if self.legacy_adapter and self.target != "ollama":
            raise UsageError("--ollama-legacy-adapter belongs to the target ollama")
        return replace(self, quant=quant)

    def for_document(self, document: Document) -> ExportRequest:
        """This request, checked, with the document's own quantisation where a GGUF is asked for and none is named."""
        request = self.checked()
        if request.quant is not None or request.target not in GGUF_TARGETS:
            return request
        return replace(request, quant=str(document.frontmatter.export.default_quant).lower()).checked()


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
