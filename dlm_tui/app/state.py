"""What the workbench remembers between runs: per document one file in the state directory.

Typed text is written a moment after it is typed, so that neither a crash nor a closed terminal loses it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dlm_tui.app.config import SamplingSettings, state_path
from dlm_tui.app.mix import MixState
from dlm_tui.document.replacing import document_lock
from dlm_tui.files import set_aside, write_atomic
from dlm_tui.small_files import read_file
from dlm_tui.store import KeptAnswers
from dlm_tui.store.set_runs import SetRuns

_HISTORY = 500
_LOCK_SECONDS = 1.0
# What a damaged file raises: no JSON, other types, no UTF-8, or nested deeper than the decoder goes.
_DAMAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_RECENT = 20


class Remembered(msgspec.Struct, kw_only=True):
    """A prompt that was asked, with the gate's weights when it was last seen. `gate_run` tells which gate that was."""

    text: str
    at: str = ""
    weights: dict[str, float] = {}
    gate_run: int | None = None


class ExportSettings(msgspec.Struct, kw_only=True):
    """The last used export settings; `mix` None is the gate's static mean, `register` runs `ollama create` after it.

    `quant` None is the document's for GGUF and the base's own type for a merged folder; `compare` measures the formats
    instead of exporting, and is not remembered."""

    target: str = "peft"
    quant: str | None = None
    compare: bool = False
    mix: str | None = None
    out: str | None = None
    register: bool = False


class Sizes(msgspec.Struct, kw_only=True):
    """Pane sizes: the left part's share of the width in cells away from the usual, the prompt's height likewise."""

    width: int = 0
    height: int = 0


class TalkState(msgspec.Struct, kw_only=True):
    """The conversation that was open: its name, the id of the turn that the next one follows, whether the mix of the
    first turn is held, and whether it is in front of the answers."""

    name: str | None = None
    here: int | None = None
    holds: bool = False
    in_front: bool = False


class State(msgspec.Struct, kw_only=True):
    """Everything remembered for one document; `saved` are the prompts of the open set as they were last seen,
    `sampling` how answers are sampled here (None: as the configuration says), `desk_versions` the earlier versions
    (`knowledge@3`) with a fader of their own, `declined_training` when the interrupted training was last written that
    is not to be offered again."""

    document: str = ""
    prompt: str = ""
    history: list[Remembered] = []
    open_set: str | None = None
    saved: list[Remembered] = []
    sampling: SamplingSettings | None = None
    mix: MixState = msgspec.field(default_factory=MixState)
    export: ExportSettings = msgspec.field(default_factory=ExportSettings)
    sizes: Sizes = msgspec.field(default_factory=Sizes)
    page: str = "answers"
    theme: str | None = None
    columns: bool = True
    heat: bool = False
    last_export: str | None = None
    desk_versions: list[str] = []
    trained_sections: list[str] = []
    declined_training: str | None = None
    set_views: list[str] = []
    talk: TalkState = msgspec.field(default_factory=TalkState)

    def remember(self, text: str, weights: dict[str, float], gate_run: int | None) -> None:
        """Put a prompt at the front of the history, once."""
        text = text.strip()
        if not text:
            return
        self.history = [entry for entry in self.history if entry.text != text]
        entry = Remembered(text=text, at=now(), weights=dict(weights), gate_run=gate_run)
        self.history.insert(0, entry)
        del self.history[_HISTORY:]


@dataclass(frozen=True)
class Snapshot:
    """A state as it was at one moment; later ones have larger numbers."""

    number: int
    data: bytes


class StateFile:
    """The file of one document. A damaged one is set aside, never in the way."""

    def __init__(self, document: Path, folder: Path | None = None) -> None:
        folder = folder or state_path()
        name = hashlib.sha256(os.fsencode(document.resolve())).hexdigest()[:16]
        self.path = folder / "documents" / f"{name}.json"
        self.answers = KeptAnswers(self.path.with_name(f"{name}.answers.sqlite"))
        """The answers given to the document's prompts, in a database beside it."""
        self.set_runs = SetRuns(self.path.with_name(f"{name}.sets.sqlite"))
        """The runs of its prompt sets, likewise."""
        self._newer: dict[str, msgspec.Raw] = {}  # keys of a newer version of this program, which are kept
        self._given = b""  # what was to be written last; the file may hold more
        self._encoded = self._newest = 0
        self._lock = threading.Lock()

    def load(self) -> State:
        """The remembered state, or a fresh one."""
        try:
            data = read_file(self.path)
            state = msgspec.json.decode(data, type=State)
            every = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        except FileNotFoundError:
            return State()
        except (OSError, *_DAMAGE):
            set_aside(self.path)
            return State()
        self._newer = {key: value for key, value in every.items() if key not in State.__struct_fields__}
        self._given = data
        return state

    def encode(self, state: State) -> Snapshot:
        """What to write; on the event loop, so that nothing changes under the encoder."""
        self._encoded += 1
        return Snapshot(self._encoded, self._bytes(state))

    def write(self, snapshot: Snapshot) -> None:
        """Write if anything changed and nothing newer was written; call it in a thread.

        Prompts that another window on the document has asked since stay in the file. Raises OSError, DocumentBusy.
        """
        with self._lock:
            if snapshot.number > self._newest and snapshot.data != self._given:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with document_lock(self.path, _LOCK_SECONDS):
                    write_atomic(self.path, self._with_others(snapshot.data))
                self._given = snapshot.data
            self._newest = max(self._newest, snapshot.number)

    def _with_others(self, data: bytes) -> bytes:
        """The state, with what another process has added to the history."""
        try:
            there = read_file(self.path)
            if there == self._given:
                return data
            others, state = msgspec.json.decode(there, type=State), msgspec.json.decode(data, type=State)
        except (OSError, *_DAMAGE):
            return data
        own = {entry.text for entry in state.history}
        added = [entry for entry in others.history if entry.text not in own]
        if not added:
            return data
        state.history = sorted([*state.history, *added], key=lambda entry: entry.at, reverse=True)[:_HISTORY]
        return self._bytes(state)

    def _bytes(self, state: State) -> bytes:
        data = msgspec.json.encode(state)
        return data[:-1] + b"," + msgspec.json.encode(self._newer)[1:] if self._newer else data


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def recent_documents(folder: Path | None = None) -> list[Path]:
    """Documents opened before that still exist, newest first."""
    path = (folder or state_path()) / "recent.json"
    try:
        names = msgspec.json.decode(read_file(path), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, *_DAMAGE):
        set_aside(path)
        return []
    return [Path(name) for name in names if Path(name).is_file()]


def note_recent(document: Path, folder: Path | None = None) -> None:
    """Put a document at the front of the recent ones."""
    folder = folder or state_path()
    here = document.resolve()
    names: Iterable[Path] = [here, *(other for other in recent_documents(folder) if other != here)]
    write_atomic(folder / "recent.json", msgspec.json.encode([str(name) for name in names][:_RECENT]))
