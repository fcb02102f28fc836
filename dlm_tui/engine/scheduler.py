"""Many requests on one compute thread: typing first, everything else in turns of one step."""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from dlm_tui.engine.protocol import Cancel, Event, Failed, Request, Route, Stopped
from dlm_tui.engine.stdio_transport import StdioTransport
from dlm_tui.errors import DlmTuiError
from dlm_tui.system_errors import error_line, system_sentence

# A handler yields events (or None after a step without news) and returns the final event.
Work = Generator[Event | None, None, Event]
Handler = Callable[[Request], Work]


@dataclass
class _Task:
    request: Request
    work: Work


class Scheduler:
    """Advances generators one step at a time.

    A `Route` request runs before anything else and is overtaken by a newer one (latest wins, no debounce); the other
    requests take turns, so a keystroke during generation waits for one decode step at most.
    """

    def __init__(self, transport: StdioTransport, handler: Handler):
        self._channel = transport
        self._handler = handler
        self._route: _Task | None = None
        self._tasks: deque[_Task] = deque()
        self._open = True

    def run(self) -> None:
        """Serve until stdin closes; running work is then closed, so that its cleanup happens."""
        while self._take_requests():
            if self._route is not None:
                if not self._step(self._route):
                    self._route = None
            elif self._tasks:
                task = self._tasks.popleft()
                if self._step(task):
                    self._tasks.append(task)
        for task in (*self._tasks, *([self._route] if self._route else [])):
            task.work.close()

    def _take_requests(self) -> bool:
        """Read what has arrived; wait only when there is nothing to do. False once stdin is closed."""
        inbox = self._channel.inbox
        while self._open and (not inbox.empty() or (self._route is None and not self._tasks)):
            request = inbox.get()
            if request is None:
                self._open = False
            elif isinstance(request, Cancel):
                self._cancel(request.target)
            else:
                self._add(request)
        return self._open

    def _add(self, request: Request) -> None:
        task = _Task(request, self._handler(request))
        if isinstance(request, Route):
            if self._route is not None:
                self._end(self._route, Stopped(reason="superseded"))
            self._route = task
        else:
            self._tasks.append(task)

    def _cancel(self, target: int) -> None:
        for task in list(self._tasks):
            if task.request.id == target:
                self._tasks.remove(task)
                self._end(task, Stopped(reason="cancelled"))
        if self._route is not None and self._route.request.id == target:
            task, self._route = self._route, None
            self._end(task, Stopped(reason="cancelled"))

    def _end(self, task: _Task, event: Event) -> None:
        task.work.close()
        self._send(task, event)

    def _step(self, task: _Task) -> bool:
        """One step of a task; whether it goes on. Errors become `Failed`, never the end of the process."""
        try:
            event = next(task.work)
        except StopIteration as finished:
            self._send(task, finished.value)
            return False
        except DlmTuiError as error:
            self._send(task, Failed(kind=type(error).__name__, text=str(error)))
            return False
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._send(
                task,
                Failed(kind=type(error).__name__, text=system_sentence(error) or f"unexpected {error_line(error)}"),
            )
            return False
        if event is not None:
            self._send(task, event)
        return True

    def _send(self, task: _Task, event: Event) -> None:
        event.id = task.request.id
        self._channel.send(event)
