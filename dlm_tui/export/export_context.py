"""What every target is written from, and small things several of them write."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dlm_tui.errors import DlmTuiError
from dlm_tui.export.concatenate import LoraPair
from dlm_tui.export.mix import ResolvedMix
from dlm_tui.export.modelfile import CONVERSATION, WITH_SYSTEM
from dlm_tui.export.parity import ParityJob
from dlm_tui.export.requests import ExportRefused, ExportRequest, Session
from dlm_tui.model.architectures.spec import switch_length
from dlm_tui.model.base import Base
from dlm_tui.model.chat import ChatTemplateError
from dlm_tui.progress import Progress
from dlm_tui.system_errors import first_line


@dataclass(frozen=True)
class ExportContext:
    """One export, resolved: `pairs` is the whole mix as one adapter, `prompts` what it will be tried with."""

    request: ExportRequest
    session: Session
    mix: ResolvedMix
    pairs: dict[str, LoraPair]

    @property
    def rank(self) -> int:
        """The largest rank of the mix in any layer."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def served_name(self) -> str:
        """`dlm-<id>:v<version>`, the name the other tool gives too; with a saved mix `dlm-<id>-<mix>:v<version>`."""
        mix = f"-{self.request.mix_name}" if self.request.mix_name else ""
        return f"dlm-{self.session.document.dlm_id.lower()}{mix}:v{self.version:04d}"

    @property
    def version(self) -> int:
        """The version of the only adapter in the mix, 1 for a mix of several."""
        from dlm_tui.store import current_version

        used = [name for name, weight in self.mix.weights if weight != 0.0]
        found = current_version(self.session.store, used[0]) if len(used) == 1 else None
        return int(found.version) if found is not None else 1

    @property
    def context_length(self) -> int:
        """Tokens to serve: what the document was trained for, within what the base can."""
        wanted: int = self.session.document.training.sequence_len
        possible: int = self.session.base.context_length
        return min(wanted, possible)

    @property
    def loadable_base(self) -> str:
        """What other programs load the base by: its hub id, or the folder of one that is not on a hub."""
        base = self.session.base
        if base.source.kind == "hub" or base.source.path is None:
            return str(base.identity.id)
        return str(base.source.path)

    @property
    def loadable_revision(self) -> str | None:
        """The hub revision that belongs to `loadable_base`, None for a folder."""
        return self.session.base.identity.revision if self.session.base.source.kind == "hub" else None


@dataclass(frozen=True)
class Trial:
    """One way to load an export: exactly; the reference that it has to equal (None: the workbench itself); and as its
    reader will load it (None: `export` is that)."""

    export: ParityJob
    stored: ParityJob | None = None
    as_read: ParityJob | None = None


class Target(Protocol):
    """One way to export. Making it checks everything that can be refused; only `write` touches the disk."""

    @property
    def context(self) -> ExportContext:
        """What it is made from."""

    @property
    def nbytes(self) -> int:
        """About how much the export takes."""

    @property
    def figures(self) -> dict[str, Any]:
        """What the manifest says beside the common keys."""

    @property
    def notes(self) -> list[str]:
        """What a person should know."""

    @property
    def window(self) -> int:
        """How many tokens of prompt and answer the trial may use."""

    @property
    def reach(self) -> int | None:
        """How many tokens the export can hold, None for as many as the base."""

    @property
    def says_system(self) -> bool:
        """Whether whoever asks the export is given the document's system prompt without sending it."""

    def write(self, folder: Path) -> Generator[Progress, None, None]:
        """All files but the manifest. Raises OSError when the disk is full."""

    def check_files(self, folder: Path) -> None:
        """Go through the files around the weights as their reader would. Raises ExportRefused naming what is wrong."""

    def trials(self, folder: Path, workspace: Path, prompts: list[list[int]]) -> list[Trial]:
        """How to try what was written; empty when there is nothing to try it with. `workspace` is for a while only."""

    def check_weights(self, folder: Path) -> Generator[Progress, None, dict[str, Any] | None]:
        """Compare every written weight with what was meant; figures for the manifest, None where there are none."""

    def command(self, folder: Path) -> str:
        """What a person types next, once the export lies in `folder`."""


@dataclass
class Common:
    """The parts of a target that are plain data."""

    nbytes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    window: int = 128
    reach: int | None = None
    says_system: bool = False


def read_alike(base: Base) -> int:
    """Tokens of the longest text that llama.cpp and vLLM read as the workbench does.

    Where the rotary table depends on a text's length (longrope) they choose by the length that they are started with,
    for all texts: llama.cpp in `get_rope_factors`, vLLM in its `Phi3LongRoPEScaledRotaryEmbedding`.
    """
    near = switch_length(base.config)
    return base.context_length if near is None else min(base.context_length, near)


def alike_note(base: Base, reader: str) -> list[str]:
    """What a person should know where that is less than the base can read."""
    length = read_alike(base)
    if length == base.context_length:
        return []
    return [
        f"{reader} is started with {length} of {base.context_length} tokens: with more it would read short texts, too,"
        " as this base reads long ones"
    ]


def save_tokenizer(context: ExportContext, folder: Path) -> None:
    """Tokenizer files and chat template. Raises ExportRefused with the library's first line when that fails."""
    try:
        context.session.base.save_tokenizer(folder)
    except (OSError, DlmTuiError):
        raise
    except Exception as error:  # the tokenizer library raises bare exceptions, for a full disk too
        raise ExportRefused(f"the tokenizer cannot be written: {first_line(error)}") from error


def chats(context: ExportContext) -> list[str]:
    """Conversations as the base's chat template writes them, none where it fails on them."""
    renderer, found = context.session.base.renderer, []
    for conversation in (CONVERSATION, WITH_SYSTEM):
        with suppress(ChatTemplateError):  # some templates know no system prompt
            found.append(renderer.text(conversation, generate=True))
    return found


def effective_dtype(context: ExportContext, quant: str) -> str:
    """The type whose rounding separates workbench and export: the coarser of the two."""
    resident = str(context.session.base.dtype).removeprefix("torch.")
    if resident == "float32" or quant.startswith(("q", "iq")):
        return quant
    return "bf16"
