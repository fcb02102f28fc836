"""The log of one training run: `logs/train-<run>-<time>.jsonl` and its summary (formats §13.4)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import msgspec

from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.finite import finite
from dlm_tui.losses import SFT, Loss, unit_of
from dlm_tui.progress import EarlyLook
from dlm_tui.store.errors import StoreError
from dlm_tui.store.layout import Store, utc_seconds
from dlm_tui.system_errors import cause

_log = logging.getLogger(__name__)


class RunLog:
    """Writes one JSON object a line, flushed as it goes, so that a crash leaves every finished line.

    Times are naive UTC seconds; non-finite numbers are written as null.
    """

    def __init__(self, store: Store, run_id: int, stem: str | None = None) -> None:
        self.run_id = run_id
        moment = utc_seconds().replace("-", "").replace(":", "")
        stem = stem or f"train-{run_id:06d}-{moment}"
        self.path = store.logs_dir / f"{stem}.jsonl"
        self.summary_path = store.logs_dir / f"{stem}.summary.json"
        self.summary_relative = self.summary_path.relative_to(store.root).as_posix()
        try:
            store.logs_dir.mkdir(parents=True, exist_ok=True)
            self._handle: IO[str] = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise StoreError(f"The run log {self.path} cannot be written: {cause(error)}.") from error

    @classmethod
    def of_run(cls, store: Store, run_id: int) -> RunLog:
        """The log of a run for further lines: its newest file if it has one, else a new one."""
        known = sorted(store.logs_dir.glob(f"train-{run_id:06d}-*.jsonl"))
        return cls(store, run_id, known[-1].stem if known else None)

    def banner(
        self,
        *,
        seed: int,
        pinned_versions: dict[str, Any],
        plan: dict[str, Any],
        determinism_class: str = "best-effort",
        determinism_notes: list[str] | None = None,
    ) -> None:
        """The first line: what is about to run."""
        self.event(
            "banner",
            run_id=self.run_id,
            seed=seed,
            determinism_class=determinism_class,
            determinism_notes=determinism_notes or [],
            pinned_versions=sorted([name, value] for name, value in pinned_versions.items()),
            plan=plan,
        )

    def delta(self, new: list[str], unchanged: list[str], removed: list[str]) -> None:
        """Section ids that are new, unchanged, or gone since the last run."""
        self.event("delta", new=new, unchanged=unchanged, removed=removed)

    def step(
        self,
        step: int,
        loss: float | None,
        lr: float | None,
        grad_norm: float | None = None,
        tokens_per_sec: float | None = None,
        val_loss: float | None = None,
        *,
        loss_kind: str = SFT,
        tokens: int | None = None,
    ) -> None:
        """One optimiser step over so many tokens; `loss` is of a kind of `losses.UNITS`, `val_loss` nats per token."""
        self.event(
            "step",
            step=step,
            loss=loss,
            loss_kind=loss_kind,
            loss_unit=unit_of(loss_kind),
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_sec=tokens_per_sec,
            val_loss=val_loss,
            tokens=tokens,
            timestamp=utc_seconds(),
        )

    def look(self, step: int, look: EarlyLook) -> None:
        """A look at the adapter behind a step of its training."""
        fields = msgspec.to_builtins(look)
        self.event("look", **{**fields, "step": step, "timestamp": utc_seconds()})

    def complete(self, **fields: Any) -> None:
        """The last line."""
        self.event("run_complete", **{"run_id": self.run_id, "timestamp": utc_seconds(), **fields})

    def summary(
        self,
        *,
        adapter_version: int,
        seed: int,
        steps: int,
        duration_seconds: float,
        train_losses: Sequence[Loss] = (),
        final_val_loss: float | None = None,
        **fields: Any,
    ) -> Path:
        """Write the summary file and return its path.

        `train_losses` are of the last step of every phase, in order: the last is the final one. `final_val_loss` is in
        nats per token. Further keys as given.
        """
        final = train_losses[-1] if train_losses else None
        value = {
            "run_id": self.run_id,
            "adapter_version": adapter_version,
            "seed": seed,
            "steps": steps,
            "final_train_loss": final.value if final else None,
            "final_train_loss_kind": final.kind if final else None,
            "final_train_loss_unit": final.unit if final else None,
            "train_losses": msgspec.to_builtins(train_losses),
            "final_val_loss": final_val_loss,
            "final_val_loss_unit": unit_of(SFT),
            "final_val_perplexity": perplexity_of(final_val_loss),
            "early_stopped": False,
            "duration_seconds": duration_seconds,
            "determinism_class": "best-effort",
            "probes": [],
            "source_directives": [],
            **fields,
        }
        try:
            write_atomic(self.summary_path, json_bytes(finite(value)))
        except OSError as error:  # as with a line: the log must not undo the run it describes
            _log.warning("%s cannot be written: %s", self.summary_path, cause(error))
        return self.summary_path

    def event(self, kind: str, **fields: Any) -> None:
        """One line; a line that cannot be written is dropped: the log must not stop the run it describes."""
        line = json.dumps({"type": kind, **finite(fields)}, sort_keys=True, ensure_ascii=False)
        try:
            self._handle.write(line + "\n")
            self._handle.flush()
        except OSError:
            return

    def close(self) -> None:
        try:
            self._handle.close()
        except OSError:
            return

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def perplexity_of(loss: float | None) -> float | None:
    """exp of a loss in nats per token; None without one, and where it is too large for a number."""
    return math.exp(loss) if loss is not None and loss < 700.0 else None
