"""Which base something was trained on: what is written down beside it, and whether a base is that one. No torch.

A gate keeps it in `tui_gate.json`, a version of an adapter in `tui_base.json`: additions of this program, which other
tools do not look at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.small_files import read_file

FILE = "tui_base.json"
_MOST_BYTES = 1 << 20
_NAMED = 3


class Identity(Protocol):
    """What names a base: hashes are lower-case hex, `id` the name people know it by."""

    @property
    def id(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def tokenizer_sha256(self) -> str:
        """Over the bytes of its files."""
        ...

    @property
    def tokenizer_form_sha256(self) -> str:
        """Over what it does, which other files may say, too; "" where that is not known."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """What of its configuration its numbers depend on."""
        ...

    @property
    def sample(self) -> object:
        """Values by which the same weights are known in another type."""
        ...

    @property
    def former_sha256(self) -> tuple[str, ...]:
        """What was recorded as `weights_sha256` while names were the files', or large tensors hashed in parts."""
        ...

    @property
    def files_sha256(self) -> str:
        """What versions up to 0.1 recorded as `weights_sha256`."""
        ...

    def other_dtype(self, recorded: object) -> tuple[str, str] | None:
        """The recorded type and this base's, where the record is of the same weights in another type."""
        ...


class OtherBase(msgspec.Struct, frozen=True):
    """What differs: `weights`, `tokenizer`, or settings, by their names; `dtypes` are the recorded and present type of
    the same weights."""

    what: str
    dtypes: tuple[str, str] | None = None


def base_record(identity: Identity) -> dict[str, object]:
    """What is written down of a base."""
    return {
        "base_id": identity.id,
        "base_revision": identity.revision,
        "weights_sha256": identity.weights_sha256,
        "weights_sample": msgspec.to_builtins(identity.sample),
        "tokenizer_sha256": identity.tokenizer_sha256,
        "tokenizer_form_sha256": identity.tokenizer_form_sha256,
        "base_settings": dict(identity.settings),
    }


def base_key(weights_sha256: str, tokenizer_sha256: str, settings: object) -> str:
    """One string for all that a base's numbers depend on, to find again what was computed with it."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16] if settings else ""
    return ":".join(filter(None, (weights_sha256, tokenizer_sha256, digest)))


def recorded_key(record: Mapping[str, object]) -> str:
    """`base_key` of a base that was written down."""
    return base_key(str(record.get("weights_sha256")), str(record.get("tokenizer_sha256")), record.get("base_settings"))


def other_base(record: Mapping[str, object], identity: Identity) -> OtherBase | None:
    """How the base of the record differs from this one; None for the same, as far as is known."""
    known, dtypes = record.get("weights_sha256"), None
    same = (None, identity.weights_sha256, *identity.former_sha256)
    if known not in same and known != identity.files_sha256:
        dtypes = identity.other_dtype(record.get("weights_sample"))
        if dtypes is None:
            return OtherBase("weights")
    if record.get("tokenizer_sha256") not in (None, identity.tokenizer_sha256):
        form = record.get("tokenizer_form_sha256")  # older records have none
        if not form or form != identity.tokenizer_form_sha256:
            return OtherBase("tokenizer")
    if names := _other_settings(record.get("base_settings"), identity.settings):
        further = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return OtherBase(f"settings in config.json ({', '.join(names[:_NAMED])}{further})")
    return OtherBase("weights", dtypes) if dtypes is not None else None


def _other_settings(recorded: object, present: Mapping[str, object]) -> list[str]:
    """The names that differ. A setting that only one of the two has belongs to another release of the library, and says
    nothing; nor does a record from before there were any."""
    if not isinstance(recorded, Mapping):
        return []
    known = {name.partition(".")[0] for name in recorded} & {name.partition(".")[0] for name in present}
    every = sorted(name for name in {*recorded, *present} if name.partition(".")[0] in known)
    return [name for name in every if recorded.get(name) != present.get(name)]


def write_version_base(folder: Path, identity: Identity) -> None:
    """Into a version folder that is being filled. Raises OSError."""
    write_atomic(folder / FILE, json_bytes(base_record(identity)))


def version_base(folder: Path) -> dict[str, Any]:
    """What a version folder says of its base; {} where it says nothing that can be read."""
    path = folder / FILE
    try:
        if path.is_symlink():
            return {}
        raw = json.loads(read_file(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def trained_elsewhere(folders: Mapping[str, Path], identity: Identity) -> str:
    """A sentence that names the adapters whose version folders speak of a base with other weights or another tokenizer
    than this one; "" without any. The same weights in another type are the same base."""
    found: dict[str, list[str]] = {}
    for name, folder in folders.items():
        record = version_base(folder)
        other = other_base(record, identity)
        if other is not None and other.dtypes is None:
            found.setdefault(f"{record.get('base_id') or 'a base'} with other {other.what}", []).append(name)
    if not found:
        return ""
    parts = [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} trained on {base}" for base, names in found.items()
    ]
    return (
        f"{'; '.join(parts)} than the base {identity.id} has now, so the answers may be nonsense: train again, or open"
        " the document with the base it was trained on (--base PATH)"
    )
