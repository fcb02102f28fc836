"""One adapter's training as one piece of work, wherever it is done: here, in a fold of a sweep, on another machine."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import msgspec

from dlm_tui.errors import UsageError
from dlm_tui.progress import Progress, Report
from dlm_tui.training.checkpoints import AdapterCheckpoints
from dlm_tui.training.early_answers import EarlyPrompt
from dlm_tui.training.phases import Finetuned, OnStep, Step
from dlm_tui.training.plan import AdapterPlan, TrainingPlan
from dlm_tui.training.rows import AdapterRows

if TYPE_CHECKING:
    from torch import Tensor

    from dlm_tui.model import Base, MixedModel


@dataclass(frozen=True, kw_only=True)
class AdapterWork:
    """What to train on what. `prompts` are token ids that a selection looks at, None for the adapter's own rows;
    `asked` are the prompts of the looks that are taken on the way, None for no looks."""

    plan: TrainingPlan
    adapter: AdapterPlan
    rows: AdapterRows
    prompts: list[list[int]] | None = None
    asked: list[EarlyPrompt] | None = None


@dataclass(frozen=True)
class Trained:
    """A trained adapter, its steps in order, and the seconds that it took."""

    result: Finetuned
    steps: list[Step]
    seconds: float


class Elsewhere(Protocol):
    """Other machines that train adapters and embed prompts, with the results of this one."""

    def train(self, works: Sequence[AdapterWork], report: Report) -> Iterator[tuple[AdapterWork, Trained]]:
        """Every adapter, each as soon as it is trained; `report` may end all of it by raising."""
        ...

    def embed(self, model: MixedModel, prompts: Sequence[str]) -> Generator[Progress, None, Tensor]:
        """Prompt embeddings float32 [n, H]."""
        ...


def train_adapter(
    base: Base, work: AdapterWork, on_step: OnStep, checkpoints: AdapterCheckpoints | None = None
) -> Finetuned:
    """Train it, from the start or from a checkpoint. The result depends on the base and the work alone.

    Raises Diverged, DlmTuiError, and whatever `on_step` raises.
    """
    with _reading_again(base, work) as work:
        return _train(base, work, on_step, checkpoints)


@contextlib.contextmanager
def _reading_again(base: Base, work: AdapterWork) -> Iterator[AdapterWork]:
    """The work as it is done on a base that lies on the disk: its layers are computed, and read, again on the way back,
    as the backward pass would keep all their weights."""
    if not base.is_offloaded:
        yield work
        return
    if work.adapter.kind.signed:
        raise UsageError(
            f"adapter {work.adapter.name!r} is trained with --signed, and the weights of a base that is read from the"
            " disk are read again on the way back, when the coefficient is another: keep the base in 4 bits instead"
            " (--offload none --quantize nf4), or train on a machine with more memory"
        )
    from torch.utils.checkpoint import set_checkpoint_early_stop

    plan = replace(work.plan, trainer=msgspec.structs.replace(work.plan.trainer, activation_checkpointing=True))
    with set_checkpoint_early_stop(False):  # a layer that is left in the middle does not give its weights back
        yield replace(work, plan=plan)


def _train(base: Base, work: AdapterWork, on_step: OnStep, checkpoints: AdapterCheckpoints | None) -> Finetuned:
    if work.adapter.parameterization == "pissa":
        from dlm_tui.training.pissa import finetune_pissa

        return finetune_pissa(
            base, work.plan, work.adapter, work.rows, on_step, checkpoints, work.prompts, asked=work.asked
        )
    from dlm_tui.training.finetune import finetune

    return finetune(base, work.plan, work.adapter, work.rows, on_step, checkpoints, asked=work.asked)
