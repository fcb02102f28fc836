"""A document with everything that answers for it: store, base, mixed adapters, gate, router."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dlm_tui.document import Document, sources
from dlm_tui.document.comparison import VersionComparison
from dlm_tui.document.names import refuse_unknown_adapter, split_version
from dlm_tui.document.prompt_sets import PromptSets
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.gate import Gate, PromptRouter, load_document_gate, resolve_gate_mix, trained_probes
from dlm_tui.gate.former import compare_gates, load_former_gate
from dlm_tui.model import Adapter, Base, MixedModel, View, base_of, load_base, load_peft_adapter, resolve_view
from dlm_tui.model.chat_history import FittedChat, fit_chat
from dlm_tui.model.prefix_reuse import CachedPrefix
from dlm_tui.progress import WARNING, Progress, map_steps
from dlm_tui.store import (
    AdapterVersion,
    GateStatus,
    Store,
    StoreError,
    Turn,
    adapter_versions,
    gate_status,
    refuse_foreign_base,
    refuse_other_document,
    verify_version,
)
from dlm_tui.store.adapter_history import find_version
from dlm_tui.store.trained_on import trained_elsewhere
from dlm_tui.store.version_record import damaged_notes

Dtype = Literal["float32", "bfloat16"]


@dataclass
class Session:
    """What a person works with. `static` is the mean gate weight over the training prompts, as last recorded;
    `warnings` are those that opening told.
    """

    path: Path
    document: Document
    store: Store
    base: Base
    model: MixedModel
    gate: Gate | None
    gate_error: str | None
    router: PromptRouter
    base_override: Path | None = None
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    static: dict[str, float] = field(default_factory=dict)
    _extended: tuple[object, MixedModel] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        path: Path,
        home: Path,
        base_override: Path | None = None,
        *,
        adapters: bool = True,
        dtype: Dtype = "float32",
    ) -> Generator[Progress, None, Session]:
        """Load the base, then the committed adapters and the gate; `adapters=False` leaves the adapters out.

        Answers read weights as `dtype`, or a warning says that they do not; gates and scores are in float32.

        Raises the document's errors, and DlmTuiError for a missing base or an adapter that does not fit it.
        """
        warnings: list[str] = []

        def noted(step: Progress) -> Progress:
            if step.stage == WARNING and step.text:
                warnings.append(step.text)
            return step

        session = yield from map_steps(cls._open(path, home, base_override, adapters, dtype), noted)
        session.warnings = warnings
        return session

    @classmethod
    def _open(
        cls, path: Path, home: Path, base_override: Path | None, adapters: bool, dtype: Dtype
    ) -> Generator[Progress, None, Session]:
        document = sources.load_for_routing(path)
        store = Store(home, document.dlm_id)
        refuse_other_document(store, document)
        base = yield from load_base(base_of(document, base_override), as_stored=True)
        committed = _committed(document, store) if adapters else {}
        found = yield from _read_adapters(store, committed, base)
        yield Progress("prepare", 0, 1, "checking the fast path; the first start on a machine compiles it")
        model = MixedModel(base, found, generation_dtype=dtype)
        yield Progress("prepare", 1, 1, "the fast path is checked")
        if problem := model.dtype_problem:
            yield Progress(WARNING, text=problem)
        gate, gate_error = _load_gate(document, store, base)
        return cls(
            path=path,
            document=document,
            store=store,
            base=base,
            model=model,
            gate=gate,
            gate_error=gate_error,
            router=PromptRouter(model.backbone, base, gate, document.adapter_names, gate_error),
            base_override=base_override,
            versions={name: item.version for name, item in committed.items()},
            static=_static(store, document),
        )

    def reload(self) -> Generator[Progress, None, None]:
        """Read the document, the adapters whose version moved, and the gate again. The base stays.

        Raises StoreError for a store that is gone: what is loaded stays, and nothing begins a new one in its place.
        """
        document = sources.load_for_routing(self.path)
        if document.base_model != self.document.base_model:
            raise DlmTuiError(
                f"the document now names base {document.base_model!r}; open it again to load another base"
            )
        store = Store(self.store.home, document.dlm_id)
        refuse_other_document(store, document)
        if self.versions and store.root == self.store.root and not store.adapters_dir.is_dir():
            raise StoreError(f"{store.root} is gone: bring it back, or open the document anew to begin without it")
        committed = _committed(document, store)
        moved = {name: item for name, item in committed.items() if self.versions.get(name) != item.version}
        found = yield from _read_adapters(store, moved, self.base)
        _static(store, document)  # what cannot be read is found before anything has changed
        self.document, self.store = document, store
        for name in list(self.model.names):
            if name not in committed:
                self.model.swap(name, None)
        for name, adapter in found.items():
            self.model.swap(name, adapter)
        self.router.backbone = self.model.backbone  # of the same family: what it has run stays valid
        self.versions = {name: item.version for name, item in committed.items()}
        self.reload_gate()

    def reload_gate(self) -> None:
        """Read the gate files again and use them at once; the router's cached states stay valid."""
        self.gate, self.gate_error = _load_gate(self.document, self.store, self.base)
        self.router.set_gate(self.gate, self.document.adapter_names, self.gate_error)
        self.static = _static(self.store, self.document)

    @property
    def gate_status(self) -> GateStatus:
        """What is in force, and why: the stored gate as it was loaded for this base."""
        in_force = self.gate.config.mode if self.gate is not None else "none"
        try:
            status = gate_status(self.document, self.store, self.base.identity, self.base.hidden_size)
        except DlmTuiError as error:
            return GateStatus("damaged", self.gate_error or str(error), in_force)
        if self.gate_error is not None and status.mode != "foreign":
            status = replace(status, mode="damaged", reason=self.gate_error)
        return replace(status, in_force=in_force)

    def chat(self, before: Sequence[Turn], question: str, answer_tokens: int) -> FittedChat:
        """What is run for a question behind past turns, in the base's own form. Raises ChatTemplateError."""
        return fit_chat(self.base, before, question, self.document.system_prompt, answer_tokens)

    def known(self) -> CachedPrefix | None:
        """What the router has run of the prompt, for answers that begin with the same tokens."""
        kv = self.router.known
        return CachedPrefix(*kv, self.model.backbone) if kv is not None else None

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values kept for the next prompt and the next answer."""
        caches = [self.router.known[1]] if self.router.known else []
        caches += [self.model.prefilled.cache] if self.model.prefilled else []
        return sum(int(cache.nbytes) for cache in caches)

    def mix_of(self, view: View, weights: Mapping[str, float] | None) -> dict[str, float]:
        """The mix of a view over the loaded adapters; gate weights of adapters that are not trained are left out."""
        names = self.model.names
        live = {name: weights[name] for name in names if name in weights} if weights else None
        static = {name: weight for name, weight in self.static.items() if name in names}
        return resolve_view(view, names, live, static)

    def compare(self, before: str, after: str) -> Generator[Progress, None, VersionComparison]:
        """What moved between two gates (`gate`, `gate@7`) or two versions of one adapter (`tone@1`, `tone`).

        On the saved prompts, and on prompts or answers of the document. Raises UsageError for two that cannot be
        compared.
        """
        from dlm_tui.scoring.version_comparison import SAVED, compare_versions, own_questions, saved_questions

        first, second = (split_gate(name, self.document) or split_version(name) for name in (before, after))
        if first[0] != second[0]:
            raise UsageError(f"{before} and {after} are not versions of one thing")
        result = VersionComparison(before=before, after=after)
        saved = PromptSets(self.path).usable_prompts()
        if first[0] == GATE:
            earlier, later = (load_former_gate(self.store, run, self.base) for run in (first[1], second[1]))
            tagged = [probe.prompt for probe in trained_probes(self.document)]
            prompts = [*((text, True) for text in saved[:SAVED]), *((text, False) for text in tagged[:SAVED])]
            result.moved = yield from compare_gates(self.router, earlier, later, prompts)
            return result
        refuse_unknown_adapter(first[0], self.document.routing_names)
        model = self.model_for([{before: 1.0}, {after: 1.0}])
        model.coefficients({before: 1.0, after: 1.0})  # says which of them is not trained
        questions = saved_questions(self.document, self.base, saved), own_questions(self.document, self.base, first[0])
        result.answers = yield from compare_versions(model, before, after, *questions)
        return result

    def model_for(self, mixes: Iterable[Mapping[str, float]]) -> MixedModel:
        """The model that answers these mixes: with the kept versions they name (`knowledge@3`) as further adapters.

        The last such model is kept, so that asking again under the same versions costs nothing. Raises UsageError for
        a version that does not exist, AdapterError for one that cannot be read.
        """
        wanted = sorted({name for mix in mixes for name in mix if split_version(name)[1] is not None})
        if not wanted:
            return self.model
        key = (tuple(wanted), tuple(self.versions.items()))
        if self._extended is None or self._extended[0] != key:
            found = {}
            for name in wanted:
                adapter, number = split_version(name)
                version = find_version(self.store, adapter, number or 0)
                found[name] = replace(load_peft_adapter(version.path, adapter, self.base, number), name=name)
            self._extended = key, self.model.extended(found)
        return self._extended[1]


GATE = "gate"


def split_gate(name: str, document: Document) -> tuple[str, int | None] | None:
    """`gate@7` as ("gate", 7), `gate` as ("gate", None); None for what is no gate.

    `_gate` is the gate, too, for documents where an adapter has its name.
    """
    word, number = split_version(name)
    words = {f"_{GATE}"} if GATE in document.adapter_names else {GATE, f"_{GATE}"}
    return (GATE, number) if word in words else None


def _committed(document: Document, store: Store) -> dict[str, AdapterVersion]:
    """The version in force of every adapter that has one, in declared order. Refuses those of another base."""
    committed = adapter_versions(store, document.adapter_names or ("default",))
    if committed:
        refuse_foreign_base(store, document)
    return committed


def _read_adapters(
    store: Store, versions: Mapping[str, AdapterVersion], base: Base
) -> Generator[Progress, None, dict[str, Adapter]]:
    found: dict[str, Adapter] = {}
    if text := trained_elsewhere({name: version.path for name, version in versions.items()}, base.identity):
        yield Progress(WARNING, text=text)
    for name, version in versions.items():
        yield Progress("adapters", len(found), len(versions), f"reading adapter {name}")
        verify_version(store, version)
        for text in damaged_notes(version):
            yield Progress(WARNING, text=text)
        found[name] = load_peft_adapter(version.path, name, base)
    if versions:
        yield Progress("adapters", len(versions), len(versions), "the adapters are read")
    return found


def _load_gate(document: Document, store: Store, base: Base) -> tuple[Gate | None, str | None]:
    """The stored gate, or why it cannot be used with this base."""
    try:
        return load_document_gate(document, store, base), None
    except DlmTuiError as error:
        return None, str(error)


def _static(store: Store, document: Document) -> dict[str, float]:
    """The static mean of the gate in force, {} without one; after a divergence that is still the gate before.

    A gate that cannot be read counts as none: `_load_gate` says what is wrong with it.
    """
    try:
        mix = resolve_gate_mix(store, document)
    except DlmTuiError:
        mix = None
    return dict(mix) if mix else {}
