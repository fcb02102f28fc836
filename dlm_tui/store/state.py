"""What state the gate is in, from its configuration and the newest gate events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dlm_tui.store.gate_files import WEIGHTS_NAME, GateConfig, read_gate_config
from dlm_tui.store.layout import Store
from dlm_tui.store.metrics_reader import GateEvent, MetricsReader


@dataclass(frozen=True)
class GateState:
    """`mode` is the honest one: "diverged" when the newest gate training diverged, else the configuration's.

    `config` says what is in force: after a divergence that is the gate trained before, or None. `events` are
    the rows of the latest run that has any, in declared order, else as configured, else by name.
    """

    mode: str
    config: GateConfig | None = None
    events: list[GateEvent] = field(default_factory=list)
    last_run_id: int | None = None
    weights_stored: bool = False

    @property
    def in_force(self) -> str:
        """What routes prompts now: "trained", "uniform" or "none"."""
        return self.config.mode if self.config is not None else "none"

    @property
    def sample_counts(self) -> dict[str, int]:
        """Probes per adapter of the newest gate run."""
        return {event.adapter_name: event.sample_count for event in self.events}


def gate_state(store: Store, adapter_names: Sequence[str] | None = None) -> GateState:
    """The state of the stored gate; reads only. Raises GateFileError, MetricsError."""
    config = read_gate_config(store)
    reader = MetricsReader(store)
    last = reader.latest_gate_run()
    events = reader.gate_events(last) if last is not None else []
    order = list(adapter_names or (config.adapter_names if config is not None else ()))
    events.sort(key=lambda event: order.index(event.adapter_name) if event.adapter_name in order else len(order))
    if any(event.mode == "diverged" for event in events):
        mode = "diverged"
    else:
        mode = config.mode if config is not None else "none"
    return GateState(mode, config, events, last, (store.gate_dir / WEIGHTS_NAME).is_file())
