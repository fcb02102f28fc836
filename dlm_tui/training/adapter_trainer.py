"""The Trainer of every phase: checkpoints without pickle, rows of like length together, two learning rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers.trainer_pt_utils import get_length_grouped_indices

from dlm_tui.document import TrainerSettings
from dlm_tui.training.checkpoints import CheckpointedTrainer


class _LengthBuckets(torch.utils.data.Sampler[int]):
    """Rows in an order that puts those of like length into one batch, another order every epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int):
        self._lengths, self._batch, self._seed, self._epoch = list(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The order depends on seed and epoch alone, so that a training goes on in the order it began with."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch, generator=generator))


class AdapterTrainer(CheckpointedTrainer):
    """One phase with the settings of the side file; `lengths` are tokens of each training row.

    `on_tokens` is told the tokens of each batch that is computed, when it is: batches are fetched ahead of that.
    `validation_collator` makes the batches of the validation rows, whose loss is a mean over batches of equal size.
    """

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        lengths: Sequence[int],
        on_tokens: Callable[[int], None],
        validation_collator: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.data_collator: Any
        self.optimizer: Any
        self._settings, self._lengths, self._validation_collator = settings, lengths, validation_collator
        self._on_tokens = on_tokens

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """Forward and backward of one batch, which counts by the tokens that are in it."""
        self._on_tokens(tokens_of(inputs))
        return super().training_step(model, inputs, num_items_in_batch)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Batches of the validation rows."""
        training = self.data_collator
        self.data_collator = self._validation_collator or training
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimiser of the plan; with LoRA+ `lora_B` has a rate of its own."""
        ratio = self._settings.loraplus_ratio
        if ratio is not None and self.optimizer is None:
            kind, values = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            # the library would give a pair on the embedding a rate of 1e-6
            self.optimizer = create_loraplus_optimizer(
                self.model, kind, loraplus_lr_ratio=ratio, loraplus_lr_embedding=values["lr"], **values
            )
        return super().create_optimizer(model)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """A base that lies in several places stays there; the library would remark on that."""
        if getattr(model, "hf_device_map", None) is None:
            super()._move_model_to_device(model, device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self._settings.length_buckets:
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return _LengthBuckets(self._lengths, batch, int(self.args.data_seed))


def tokens_of(batch: Mapping[str, Any]) -> int:
    """Tokens of a batch without padding, of pairs those of both sides; a packed batch has neither mask nor padding."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())
