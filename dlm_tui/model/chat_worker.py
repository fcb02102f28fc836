"""Renders chat templates in a process of its own: a template is a program from a model's folder.

Started by `chat.py` as a plain file, with nothing but jinja2, so it is ready in some 80 ms and what it is given can
neither reach the model nor take more memory or time than it is allowed. One JSON object per line each way.
The environment is the one that transformers renders chat templates in; a test compares the two.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_BYTES = 768 * 1024 * 1024
MOST_CHARACTERS = 16_000_000


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training masks; here it only passes on."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it this way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

    def _pass(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeNamespace(Namespace):
    """`namespace(…)` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _refuse_private(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)`, without the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """The template, compiled in the sandbox. Raises TemplateError for a syntax error."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _SafeNamespace
    return environment.from_string(template)


def render(request: dict[str, Any]) -> str:
    """The text of one conversation: `template`, `messages`, `generate` and `variables` of the request.

    Raises whatever the template raises, OverflowError for a text of more than 16 million characters.
    """
    pieces: list[str] = []
    length = 0
    for piece in compiled(request["template"]).generate(
        messages=request["messages"],
        tools=None,
        documents=None,
        add_generation_prompt=request["generate"],
        **request["variables"],
    ):
        pieces.append(piece)
        length += len(piece)
        if length > MOST_CHARACTERS:
            raise OverflowError(f"it writes more than {MOST_CHARACTERS} characters")
    return "".join(pieces)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        return {"text": render(request)}
    except TemplateError as error:
        return {"refused": str(error) or type(error).__name__}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # a template fails in as many ways as a program does
        return {"error": f"{type(error).__name__}: {error}"}


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _limit_time(seconds: float) -> None:
    """End this process by SIGPROF after so many seconds of processor time, in compiled code too; 0: no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answer until stdin closes."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # a system without this limit still has the clock
        _limit_memory()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_time(request["seconds"])
        answer = json.dumps(_answer(request)).encode()
        _limit_time(0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
