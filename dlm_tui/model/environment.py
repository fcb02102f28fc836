"""Environment variables that a process which runs the model should be started with. No torch."""

from __future__ import annotations

CHILD_ENVIRONMENT = {
    # torch's threads otherwise spin while they wait for each other; beside a training job that made a step of 50 ms
    # take 500. Has to be set before the process starts.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
