"""Checkpoints of a training: weights, optimiser, schedule and random states as safetensors and JSON, no pickle.

A training that goes on from one gives the same bytes as one that was never interrupted (same thread count, same kind of
machine): every state that a step reads is put back. One that was written at the end of an epoch lies before the pass
over the validation rows, which draws random numbers of its own: going on begins with that pass.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from dlm_tui.errors import Cancelled, DlmTuiError
from dlm_tui.files import json_bytes
from dlm_tui.store import Store, utc_seconds
from dlm_tui.store.checkpoints import (
    FINISHED,
    Asked,
    CheckpointState,
    PhaseResult,
    checkpoint_folder,
    checkpoint_name,
    damage_of,
    new_checkpoint,
    numbered,
    read_state,
)

_WEIGHTS, _START = "weights.safetensors", "phase_start.safetensors"
_OPTIMIZER, _GROUPS, _SCHEDULER = "optimizer.safetensors", "optimizer.json", "scheduler.json"
_TAIL_DEPTH = "tail_depth.json"
_RANDOM, _RANDOM_STATES, _SCALER = "random.safetensors", "random.json", "scaler.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointEvery:
    """When a checkpoint is written: every so many optimiser steps, or when so many seconds have passed since the last.

    By default every ten minutes, so that short trainings write none.
    """

    steps: int | None = None
    seconds: float | None = 600.0

    def is_due(self, steps: int, seconds: float) -> bool:
        """After `steps` steps and `seconds` seconds without one."""
        by_steps = self.steps is not None and steps >= self.steps
        return by_steps or (self.seconds is not None and seconds >= self.seconds)


@dataclass(kw_only=True)
class AdapterCheckpoints:
    """The checkpoints of one adapter in one run. `resume` is the folder to go on from, None for a start.

    `damaged` says, a sentence each, what of an earlier try was not gone on from, as it is no longer what was written.
    """

    folder: Path
    fingerprint: str
    run_id: int
    total: int
    every: CheckpointEvery
    asked: Asked | None = None
    resume: Path | None = None
    done: list[PhaseResult] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    _newest: Path | None = None
    _start: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        store: Store,
        adapter: str,
        fingerprint: str,
        run_id: int,
        total: int,
        every: CheckpointEvery,
        resume: bool,
        asked: Asked,
    ) -> AdapterCheckpoints:
        """For a run of `total` optimiser steps; `resume` takes the newest whole checkpoint of the same training."""
        folder = checkpoint_folder(store, adapter)
        made = cls(folder=folder, fingerprint=fingerprint, run_id=run_id, total=total, every=every, asked=asked)
        if resume and os.path.lexists(folder) and not folder.is_dir():
            made.damaged.append(f"{folder} is no folder")
        for path in numbered(folder) if resume else ():
            state = read_state(path)
            if state is not None and state.fingerprint != fingerprint:
                continue
            if damage := damage_of(path):
                made.damaged.append(damage)
            elif state is not None:
                made.resume, made.done, made._newest = path, list(state.done), path
                break
        return made

    @property
    def resumed_step(self) -> int:
        """The optimiser step behind which the adapter goes on, 0 for a start."""
        return _state_of(self.resume).step if self.resume is not None else 0

    @property
    def steps_done(self) -> int:
        """Optimiser steps of the phases that are over."""
        return sum(result.steps for result in self.done)

    def begin(self, phase: str, model: torch.nn.Module) -> Path | None:
        """A phase begins: what to go on from, if it was interrupted in this phase.

        The weights are then those with which the phase began, which a preference phase compares with.
        """
        here = self.resume if self.resume is not None and _state_of(self.resume).phase == phase else None
        if here is not None:
            _put_weights(model, load_file(here / _START))
        self._start = {name: weight.detach().clone() for name, weight in trainable(model).items()}
        return here

    def save(self, trainer: CheckpointedTrainer, phase: str) -> None:
        """Write a checkpoint behind the trainer's current step."""
        step = self.steps_done + int(trainer.state.global_step)
        name = checkpoint_name(step)
        with new_checkpoint(self.folder, name, self._state(step, phase), before=self._newest) as scratch:
            trainer.write_state(scratch)
            (scratch / _START).write_bytes(save(self._start))
        self._newest = self.folder / name

    def end(self, result: PhaseResult) -> None:
        """A phase is over."""
        self.done.append(result)
        self.resume = None

    def finish(
        self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], tail_depth: Mapping[str, float]
    ) -> None:
        """The adapter is trained: it waits here until all of the run are, whatever becomes of the process."""
        state = self._state(self.steps_done, "")
        with new_checkpoint(self.folder, FINISHED, state, before=self._newest) as scratch:
            (scratch / _WEIGHTS).write_bytes(save(dict(tensors)))
            (scratch / "adapter_config.json").write_bytes(json_bytes(dict(config)))
            (scratch / _TAIL_DEPTH).write_bytes(json_bytes(dict(tail_depth)))

    def finished(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, float], list[PhaseResult]] | None:
        """Tensors, configuration, tail depth and phases of an adapter that an earlier try of this run has trained to
        the end. What is damaged costs the training time, not its result: None, and `damaged` says so."""
        path = self.folder / FINISHED
        state = read_state(path)
        if not os.path.lexists(path) or (state is not None and state.fingerprint != self.fingerprint):
            return None
        damage = damage_of(path)
        if damage is not None or state is None:
            self.damaged.insert(0, damage or f"{path} cannot be read")
            return None
        config = json.loads((path / "adapter_config.json").read_bytes())
        return load_file(path / _WEIGHTS), config, json.loads((path / _TAIL_DEPTH).read_bytes()), list(state.done)

    def _state(self, step: int, phase: str) -> CheckpointState:
        return CheckpointState(
            fingerprint=self.fingerprint,
            run_id=self.run_id,
            step=step,
            total=self.total,
            at=utc_seconds(),
            phase=phase,
            done=self.done,
            asked=self.asked,
        )


def fingerprint(*parts: object) -> str:
    """SHA-256 of what decides a training's result: plan, rows as token ids, base, library versions, threads."""
    own = [torch.__version__, torch.get_num_threads(), *parts]
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that are trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


class CheckpointedTrainer(Trainer):
    """transformers' Trainer whose checkpoints are ours: it writes and reads no pickled file."""

    checkpoints: AdapterCheckpoints | None = None
    phase_name = ""
    steps_per_epoch = 1

    def train_from(self, folder: Path | None) -> None:
        """Train to the end, from the start or from a checkpoint."""
        before = _trained_steps(folder) if folder is not None else 0
        self.train(resume_from_checkpoint=str(folder) if folder is not None else None)
        if folder is not None and self.state.global_step == before:
            self._load_rng_state(str(folder))  # it was the last step: what follows it is still to be done

    def write_state(self, folder: Path) -> None:
        """Everything that the next step depends on."""
        (folder / _WEIGHTS).write_bytes(
            save({n: w.detach().cpu().contiguous() for n, w in trainable(self.model).items()})
        )
        tensors, groups = _optimizer_parts(self.optimizer.state_dict())
        (folder / _OPTIMIZER).write_bytes(save(tensors))
        (folder / _GROUPS).write_bytes(json_bytes(groups))
        (folder / _SCHEDULER).write_bytes(json_bytes(self.lr_scheduler.state_dict()))
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None:
            (folder / _SCALER).write_bytes(json_bytes(scaler.state_dict()))
        generators = {"cpu": torch.random.get_rng_state()}
        if torch.cuda.is_available():
            generators |= {f"cuda{n}": state for n, state in enumerate(torch.cuda.random.get_rng_state_all())}
        (folder / _RANDOM).write_bytes(save(generators))
        name, keys, *rest = np.random.get_state(legacy=True)
        states = {"python": random.getstate(), "numpy": [name, [int(key) for key in keys], *rest]}
        (folder / _RANDOM_STATES).write_bytes(json_bytes(states))
        for part in [*self.callback_handler.callbacks, self.control]:
            if isinstance(part, ExportableState):
                self.state.stateful_callbacks[type(part).__name__] = part.state()
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save(self, self.phase_name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        _put_weights(self.model, load_file(Path(resume_from_checkpoint) / _WEIGHTS))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        groups = json.loads((folder / _GROUPS).read_bytes())
        self.optimizer.load_state_dict(_optimizer_state(load_file(folder / _OPTIMIZER), groups))
        self.lr_scheduler.load_state_dict(json.loads((folder / _SCHEDULER).read_bytes()))

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is not None and scaler is not None:
            scaler.load_state_dict(json.loads((Path(checkpoint) / _SCALER).read_bytes()))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = json.loads((Path(checkpoint) / _RANDOM_STATES).read_bytes())
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = states["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        generators = load_file(Path(checkpoint) / _RANDOM)
        torch.random.set_rng_state(generators["cpu"])
        if torch.cuda.is_available():
            torch.cuda.random.set_rng_state_all([generators[key] for key in sorted(generators) if key != "cpu"])
        if self.eval_dataset is not None and self.state.global_step % self.steps_per_epoch == 0:
            self.evaluate()


class CheckpointTimer(TrainerCallback):
    """Asks for a checkpoint when one is due; a cancellation is asked for through `stop`, which writes one first."""

    def __init__(self, every: CheckpointEvery) -> None:
        self._every = every
        self._step, self._since = 0, time.monotonic()
        self.stopped: BaseException | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count from here."""
        self._step, self._since = state.global_step, time.monotonic()

    def stop(self, reason: BaseException) -> bool:
        """Whether the training ends in its own way, after a last checkpoint, instead of at once."""
        if not isinstance(reason, Cancelled | KeyboardInterrupt):
            return False
        self.stopped = reason
        return True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """A checkpoint, if one is due."""
        if self._every.is_due(state.global_step - self._step, time.monotonic() - self._since):
            self._step, self._since = state.global_step, time.monotonic()
            control.should_save = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Who stops does not wait for the validation rows."""
        if self.stopped is not None:
            control.should_evaluate = False
        return control

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """After the step was reported, so that a cancellation in it leaves a checkpoint of this very step."""
        if self.stopped is not None:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False
        return control


def _state_of(folder: Path) -> CheckpointState:
    state = read_state(folder)
    if state is None:
        raise DlmTuiError(f"{folder} cannot be read any more; train again without --resume")
    return state


def _trained_steps(folder: Path) -> int:
    """Optimiser steps of the phase at a checkpoint."""
    return int(json.loads((folder / "trainer_state.json").read_bytes())["global_step"])


def last_loss(folder: Path) -> tuple[int, float, float | None]:
    """Steps, loss of the last step and validation loss of the phase at a checkpoint."""
    history = json.loads((folder / "trainer_state.json").read_bytes())["log_history"]
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    judged = [float(entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    return _trained_steps(folder), losses[-1] if losses else math.nan, judged[-1] if judged else None


def _put_weights(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    own = trainable(model)
    if set(own) != set(tensors):
        raise DlmTuiError("the checkpoint is of another adapter; train again without --resume")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[name])


def _optimizer_parts(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by `index.key`, and the rest as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.detach().cpu().contiguous().clone()
            else:
                rest.setdefault(str(index), {})[key] = value
    return tensors, {"groups": state["param_groups"], "rest": rest}


def _optimizer_state(tensors: Mapping[str, torch.Tensor], groups: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    for index, values in groups["rest"].items():
        state.setdefault(int(index), {}).update(values)
    return {"state": state, "param_groups": groups["groups"]}
