"""The engine child: `python -m dlm_tui.engine.server`. Holds the base, the adapters and the gate for one screen."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from dlm_tui.engine.priority import ENGINE, give_way
from dlm_tui.engine.protocol import PROTOCOL, Hello
from dlm_tui.engine.stdio_transport import StdioTransport, package_versions
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.environment import collect_rarely
from dlm_tui.model.memory import refuse_narrow_limits


def main() -> None:
    """Serve until stdin closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C belongs to the screen
    give_way(ENGINE)
    transport = StdioTransport()
    collect_rarely()
    try:
        refuse_narrow_limits()
    except DlmTuiError as error:
        sys.exit(str(error))  # the screen tells the last line of a child that did not start
    import torch

    from dlm_tui.engine.handlers import Handlers
    from dlm_tui.engine.scheduler import Scheduler

    transport.send(
        Hello(
            protocol=PROTOCOL,
            versions=package_versions(),
            device="cuda" if torch.cuda.is_available() else "cpu",
            dtype="float32",
            pid=os.getpid(),
        )
    )
    transport.listen()
    Scheduler(transport, Handlers(arguments.threads)).run()
    # Daemon threads of libraries must not delay the end of a child whose screen is gone.
    os._exit(0)


if __name__ == "__main__":
    main()
