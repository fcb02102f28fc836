"""What a base is, tensor by tensor, so that a gate or an adapter can tell when the base under it has changed. No torch.

A base is its tensors, not its files: the same tensors in other files, in another order, are the same base, as long as
the configuration computes the same with them; so are the same numbers in a wider type, as all is computed in float32.
Which tensors a file means is the model's to say (`CheckpointForm`): one that stores a tied output layer once more,
names its tensors without the model's prefix, or has what no forward reads, is the same base as one that does not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from dlm_tui.document.side_file import Quantisation
from dlm_tui.files import sha256_file
from dlm_tui.model.computing_settings import Setting
from dlm_tui.model.remembered import remembered
from dlm_tui.model.tensor_facts import Hashing, TensorFacts, tensor_facts
from dlm_tui.model.tokenizer_form import tokenizer_form_hash
from dlm_tui.store.trained_on import base_key

WHOLE_FILE_LIMIT = 100 * 1024 * 1024
SAMPLES = 256
_BLOCK = 64 * 1024
_BLOCKS = 64
# half a unit in the last place, and the smallest number that is not rounded away
_ROUNDING = {"F64": (2.0**-53, 0.0), "F32": (2.0**-24, 2.0**-149), "F16": (2.0**-11, 2.0**-25), "BF16": (2.0**-8, 0.0)}
# a quantised base keeps the sample of what it was made from, which may have been of any of these types
_ROUNDING |= dict.fromkeys(get_args(Quantisation), _ROUNDING["BF16"])
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


class WeightSample(msgspec.Struct, frozen=True):
    """What tells the same weights in another type from other weights.

    `layout_sha256` is over names and shapes, `dtypes` [n] the stored types of the `values` [n], which are spread over
    all tensors.
    """

    layout_sha256: str
    dtypes: list[str]
    values: list[float]

    def is_near(self, other: WeightSample) -> bool:
        """Whether both are the same weights in different types: equal up to the rounding of the coarser one."""
        if self.layout_sha256 != other.layout_sha256 or len(self.values) != len(other.values):
            return False
        for mine, theirs, *dtypes in zip(self.values, other.values, self.dtypes, other.dtypes, strict=True):
            relative = max(_ROUNDING.get(dtype, (0.0, 0.0))[0] for dtype in dtypes)
            absolute = max(_ROUNDING.get(dtype, (0.0, 0.0))[1] for dtype in dtypes)
            if not abs(mine - theirs) <= relative * max(abs(mine), abs(theirs)) + absolute:
                return False
        return self.dtypes != other.dtypes

    @property
    def dtype(self) -> str:
        """The types that the values are stored in, that of most of them first."""
        return " and ".join(sorted(set(self.dtypes), key=lambda dtype: (-self.dtypes.count(dtype), dtype))) or "none"


class CheckpointForm(msgspec.Struct, frozen=True):
    """How the model reads its files: `names` are its parameters and stored buffers, `prefix` what stands before those
    of the decoder ("" for none), `tied` copies by the name of what they are a copy of; `unread` are names that it left
    out, and `ignored` patterns of names that it leaves out without a word.
    """

    names: frozenset[str] = frozenset()
    prefix: str = ""
    tied: dict[str, str] = {}
    unread: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    def tensors(self, stored: Mapping[str, TensorFacts]) -> dict[str, TensorFacts]:
        """The tensors that the model computes with, under its own names."""
        found: dict[str, TensorFacts] = {}
        parts = {name[len(self.prefix) + 1 :].partition(".")[0] for name in self.names if self._is_prefixed(name)}
        for name, facts in stored.items():
            own = self._own_name(name, parts)
            own = name if own in stored else own  # both are there, and which of them is read is not known
            if own in self.names or not self._is_left_out(name, own):
                found[own] = facts
        for copy, original in self.tied.items():
            if copy in found and found.get(original) in (None, found[copy]):
                found[original] = found.pop(copy)
        return found

    def _is_prefixed(self, name: str) -> bool:
        return bool(self.prefix) and name.startswith(f"{self.prefix}.")

    def _own_name(self, name: str, parts: set[str]) -> str:
        """With the prefix where it is lacking, without it where the model has none; the decoder has `parts`."""
        if name in self.names:
            return name
        if self._is_prefixed(name):
            bare = name[len(self.prefix) + 1 :]
            return bare if bare in self.names else name
        return f"{self.prefix}.{name}" if name.partition(".")[0] in parts else name

    def _is_left_out(self, name: str, own: str) -> bool:
        return bool({name, own} & self.unread) or any(re.search(pattern, name) for pattern in self.ignored)


class BaseIdentity(msgspec.Struct, frozen=True):
    """`id` is the hub id, `pocket` or the folder's stand-in name; hashes are lower-case hex SHA-256.

    `sample` knows the same weights in another type; `settings` are those of the configuration that the numbers depend
    on, too; `folder` is where the tokenizer lies. What was recorded before: `files` are those that the hash before 0.2
    was over; `former_sha256` are hashes over the tensors as the files name them, then as the model does, large ones in
    parts, then in the types that they are stored in where these are others; `stored_sample` is of the files' names too.
    """

    id: str
    revision: str | None
    weights_sha256: str
    tokenizer_sha256: str
    sample: WeightSample | None = None
    files: tuple[Path, ...] = ()
    former_sha256: tuple[str, ...] = ()
    stored_sample: WeightSample | None = None
    settings: Mapping[str, Setting] = {}
    folder: Path | None = None

    @property
    def key(self) -> str:
        """One string for all that its numbers depend on."""
        return base_key(self.weights_sha256, self.tokenizer_sha256, self.settings)

    @property
    def tokenizer_form_sha256(self) -> str:
        """The hash over what the tokenizer does, by which the same one is known in other files; "" where that is not
        known. Takes a second for a large vocabulary, once."""
        return tokenizer_form_hash(self.folder) if self.folder is not None else ""

    @property
    def files_sha256(self) -> str:
        """The hash over the weight files, their names included, which gates recorded up to version 0.1."""
        return files_hash(self.files)

    def other_dtype(self, recorded: object) -> tuple[str, str] | None:
        """The recorded type and this base's, where `recorded` is a sample of the same weights in another type."""
        try:
            sample = msgspec.convert(recorded, WeightSample)
        except msgspec.ValidationError:
            return None
        own = next(
            (mine for mine in (self.sample, self.stored_sample) if mine is not None and mine.is_near(sample)), None
        )
        return (sample.dtype, own.dtype) if own is not None else None


def identify(
    hf_id: str,
    revision: str | None,
    folder: Path,
    files: Sequence[Path],
    form: CheckpointForm | None = None,
    settings: Mapping[str, Setting] | None = None,
    hashing: Hashing | None = None,
) -> BaseIdentity:
    """The identity of the base in `folder` whose weights are in the safetensors `files`, read in `form`, with the
    `settings` of its configuration; without a form the tensors are taken as they are stored. `hashing` hears how far
    it is."""
    tensors: dict[str, TensorFacts] = {}
    for file in files:
        tensors |= remembered("tensors", file, lambda path: tensor_facts(path, hashing), dict[str, TensorFacts])
    read = tensors if form is None else form.tensors(tensors)
    weights, as_stored = weights_hash(_narrowest(read)), weights_hash(read)
    return BaseIdentity(
        hf_id,
        revision,
        weights,
        tokenizer_hash(folder),
        weight_sample(read),
        tuple(files),
        (_sampled_hash(tensors), _sampled_hash(read), *([as_stored] if as_stored != weights else [])),
        weight_sample(tensors),
        settings or {},
        folder,
    )


def quantised_identity(identity: BaseIdentity, quantisation: str) -> BaseIdentity:
    """Who a base is once its layers are quantised on loading: not the one it was made from, but its near relative."""

    def digest(weights: str) -> str:
        return hashlib.sha256(f"{weights}\0{quantisation}".encode()).hexdigest()

    def narrowed(sample: WeightSample | None) -> WeightSample | None:
        return sample and msgspec.structs.replace(sample, dtypes=[quantisation] * len(sample.dtypes))

    return msgspec.structs.replace(
        identity,
        weights_sha256=digest(identity.weights_sha256),
        sample=narrowed(identity.sample),
        files=(),
        former_sha256=tuple(map(digest, identity.former_sha256)),
        stored_sample=narrowed(identity.stored_sample),
    )


def _narrowest(tensors: Mapping[str, TensorFacts]) -> Mapping[str, TensorFacts]:
    """The tensors as bfloat16 where that rounds none of them, else as they are."""
    found = {}
    for name, facts in tensors.items():
        if facts.dtype not in _ROUNDING:
            found[name] = facts
        elif facts.bfloat16_sha256 is None:
            return tensors
        else:
            found[name] = msgspec.structs.replace(facts, dtype="BF16", sha256=facts.bfloat16_sha256)
    return found


def weights_hash(tensors: Mapping[str, TensorFacts]) -> str:
    """One hash over names, types, shapes and bytes of all tensors, whichever files they are in."""
    digest = hashlib.sha256()
    for name, facts in sorted(tensors.items()):
        digest.update(f"{name}\0{facts.dtype}\0{facts.shape}\0{facts.sha256}\0".encode())
    return digest.hexdigest()


def _sampled_hash(tensors: Mapping[str, TensorFacts]) -> str:
    return weights_hash({n: msgspec.structs.replace(f, sha256=f.sampled_sha256) for n, f in tensors.items()})


def weight_sample(tensors: dict[str, TensorFacts]) -> WeightSample:
    """At most `SAMPLES` values, spread evenly over the tensors in the order of their names."""
    layout = hashlib.sha256()
    for name, facts in sorted(tensors.items()):
        layout.update(f"{name}\0{facts.shape}\0".encode())
    every = [(facts.dtype, value) for _, facts in sorted(tensors.items()) for value in facts.values]
    chosen = every if len(every) <= SAMPLES else [every[at * len(every) // SAMPLES] for at in range(SAMPLES)]
    return WeightSample(layout.hexdigest(), [dtype for dtype, _ in chosen], [value for _, value in chosen])


def files_hash(files: Iterable[Path]) -> str:
    """One hash over the weight files as such; of files above 100 MB the size, the header and 64 blocks of 64 KiB."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        digest.update((sha256_file(file) if size <= WHOLE_FILE_LIMIT else _sampled_file(file, size)).encode())
    return digest.hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """One hash over the files that decide how text becomes tokens; those that are absent do not count."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(f"{name}\0{remembered('files', folder / name, sha256_file, str)}\0".encode())
    return digest.hexdigest()


def _sampled_file(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        header = int.from_bytes(handle.read(8), "little")
        digest.update(handle.read(min(header, 1 << 24)))
        for block in range(_BLOCKS):
            handle.seek((size - _BLOCK) * block // (_BLOCKS - 1))
            digest.update(handle.read(_BLOCK))
    return digest.hexdigest()
