"""Labelling a prompt: it becomes a section of the document, and the gate learns it at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dlm_tui.document.comparison import Moved
from dlm_tui.document.label import label_section
from dlm_tui.document.names import refuse_unknown_adapter
from dlm_tui.document.probes import NO_GATE
from dlm_tui.errors import Cancelled, DlmTuiError, UsageError
from dlm_tui.gate.embedding import cached_embeddings
from dlm_tui.gate.gate import Gate, load_gate
from dlm_tui.gate.training import GATE_NOT_TRAINED, GateOutcome, train_document_gate
from dlm_tui.progress import Progress
from dlm_tui.shell_word import shell_word
from dlm_tui.system_errors import cause

if TYPE_CHECKING:
    from pathlib import Path

    from dlm_tui.document import AppendResult, Document
    from dlm_tui.model import MixedModel
    from dlm_tui.store import Store


@dataclass(frozen=True)
class LabelOutcome:
    """What was appended, the document as it is now, the prompt's weights before and after.

    `changed` are the other prompts whose strongest adapter is another one after the training.
    """

    appended: AppendResult
    document: Document
    before: dict[str, float] | None
    after: dict[str, float]
    gate: GateOutcome
    changed: list[Moved]


def label_prompt(
    path: Path,
    document: Document,
    store: Store,
    model: MixedModel,
    prompt: str,
    adapter: str,
    *,
    answer: str | None = None,
    saved: Sequence[str] = (),
    seed: int | None = None,
) -> Generator[Progress, None, LabelOutcome]:
    """Append the prompt as a section of `adapter`, train the gate again, and compare before with after.

    Where somebody saved the document meanwhile, the section is added to what is there now. `saved` prompts whose top
    adapter changed are listed. Without a gate before, `before` is None and nothing counts as changed. What fails after
    the section was saved is an error that says so.
    """
    from dlm_tui.document import append_section, sources

    refuse_unknown_adapter(adapter, document.adapter_names)
    if not document.gate_enabled or len(document.adapter_names) < 2:
        raise UsageError(NO_GATE)
    store.refuse_unwritable()  # before the document is changed
    kind, content = label_section(prompt, answer)
    others = [text for text in dict.fromkeys(saved) if text and text != prompt]
    embeddings, _ = yield from cached_embeddings(model, store, [prompt, *others])
    old = _gate_before(store, model)
    before = _weights(old, embeddings)

    appended = append_section(path, document.sha256, type=kind, adapter=adapter, content=content)
    try:
        changed_document = sources.load_for_routing(path)
        outcome = yield from train_document_gate(changed_document, store, model, seed=seed)
    except (DlmTuiError, OSError, KeyboardInterrupt) as error:
        kind_of_error = Cancelled if isinstance(error, Cancelled | KeyboardInterrupt) else DlmTuiError
        raise kind_of_error(_half_done(path, appended, error)) from error
    new = outcome.gate if outcome.gate is not None else old
    after = _weights(new, embeddings)
    compared = zip(others, (before or [])[1:], (after or [])[1:], strict=False)  # neither has any without a gate
    moved = [Moved(text, one, other, saved=True) for text, one, other in compared]
    return LabelOutcome(
        appended,
        changed_document,
        before[0] if before is not None else None,
        after[0] if after is not None else dict.fromkeys(document.adapter_names, 1.0 / len(document.adapter_names)),
        outcome,
        [change for change in moved if change.top_changed],
    )


def _half_done(path: Path, appended: AppendResult, error: BaseException) -> str:
    if isinstance(error, Cancelled | KeyboardInterrupt):
        reason = "was cancelled"
    else:
        said = cause(error) if isinstance(error, OSError) else str(error)
        said = said.removeprefix(GATE_NOT_TRAINED).rstrip(".")
        reason = f"failed: {said.removesuffix(' and do it again')}"  # what is to be done again is the gate alone
    return (
        f"the section was added to {path} at line {appended.line}, but training the gate {reason}. Do not add it "
        f"again: `dlm-tui train {shell_word(path)} --gate-only` trains the gate on it."
    )


def _gate_before(store: Store, model: MixedModel) -> Gate | None:
    """The gate in force; one that cannot be used counts as none, it is about to be replaced."""
    try:
        return load_gate(store, model.base.identity, model.base.hidden_size)
    except DlmTuiError:
        return None


def _weights(gate: Gate | None, embeddings: Tensor) -> list[dict[str, float]] | None:
    if gate is None:
        return None
    return [dict(zip(gate.names, row, strict=True)) for row in gate.weights(embeddings).tolist()]
