"""The folder that `export --target llama-server --gate live` writes, as the server reads it. No torch."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dlm_tui.errors import DlmTuiError
from dlm_tui.serving.llama.gate import NumpyGate
from dlm_tui.small_files import read_file

SETTINGS = "live.json"
FORMAT = 1


class LiveAdapter(msgspec.Struct, frozen=True):
    """One adapter and its GGUF."""

    name: str
    file: str


class LiveSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`live.json`. File names are relative to the folder; `context_length` and `base_context`, the most that the base
    reads, in tokens; `probes` are prompts of the document with which the cost of a grid is measured. `flat`: the
    document declares no adapters by name.
    """

    base: str
    base_gguf: str
    hidden_size: int
    context_length: int
    adapters: list[LiveAdapter]
    gate_names: list[str]
    gate: str
    gate_mode: str
    chat_template: str
    special_tokens: dict[str, str | list[str]]
    temperature: float
    top_p: float
    gate_enabled: bool = True
    gate_reason: str = ""
    ood: str | None = None
    system_prompt: str | None = None
    static_mix: dict[str, float] = msgspec.field(default_factory=dict)
    probes: list[str] = msgspec.field(default_factory=list)
    document_sha256: str = ""
    versions: dict[str, int] = msgspec.field(default_factory=dict)
    base_context: int | None = None
    format: int = FORMAT


class LiveFolder:
    """Settings and gate of an exported folder, with the paths of its weights."""

    def __init__(self, path: Path) -> None:
        """Raises DlmTuiError with one sentence for a folder that is not whole."""
        self.path = path
        self.settings = read_settings(path)
        if self.settings.format != FORMAT:
            raise DlmTuiError(f"{path / SETTINGS} has format {self.settings.format}, this server reads {FORMAT}")
        self.base = self._file(self.settings.base_gguf)
        self.adapters = {item.name: self._file(item.file) for item in self.settings.adapters}
        ood = self._file(self.settings.ood) if self.settings.ood else None
        self.gate = NumpyGate.read(tuple(self.settings.gate_names), self._file(self.settings.gate), ood)
        if self.gate.input_dim != self.settings.hidden_size:
            raise DlmTuiError(
                f"the gate takes {self.gate.input_dim} numbers, the base gives {self.settings.hidden_size}"
            )

    def _file(self, name: str) -> Path:
        """A file directly in the folder: the settings cannot name any other."""
        found = self.path / name
        if Path(name).name != name or not found.is_file():
            raise DlmTuiError(f"{self.path} is not whole: {name} is missing; export it again")
        return found


def read_settings(path: Path) -> LiveSettings:
    """`live.json` of a folder. Raises DlmTuiError."""
    try:
        return msgspec.json.decode(read_file(path / SETTINGS), type=LiveSettings)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DlmTuiError(f"{path} holds no live export ({error}); write one with: export --gate live") from None
