"""How a conversation becomes text: the one place where chat templates run. No torch.

Training rows, preference pairs, questions and exports all render through `ChatRenderer`, so what is asked has the
form of what was learned. A template comes from a model's folder, so it runs in a process of its own (`chat_worker`)
with a bound on time, memory and length.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_tui.child import python_words
from dlm_tui.errors import DlmTuiError
from dlm_tui.platform import OWN_GROUP

if TYPE_CHECKING:  # an exported live server has this module and no store
    from dlm_tui.store import Turn

SECONDS = 4.0
"""Processor time that one text may take. A clock would refuse good templates on a busy machine."""
_PATIENCE = 120.0
"""Seconds by the clock in which a worker gets its processor time on any machine that works at all."""
_TEMPLATE_LIMIT = 1_000_000

Message = Mapping[str, str]


def chat_messages(turns: Sequence[Turn], question: str, system: str | None = None) -> list[dict[str, str]]:
    """The messages of a conversation up to a new question, the system prompt first where there is one."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": turn.answer}]
    return [*messages, {"role": "user", "content": question}]


def newest_question(messages: Sequence[Message]) -> str:
    """What the gate is asked about a conversation: the newest user message alone; empty where there is none."""
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")


# What `alternating` does, in the language of the templates; it stands before a template that takes no system role.
_FOLDING = r"""{%- set fold = namespace(found=false, system='', turns=[]) -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set fold.system = fold.system ~ ('\n\n' if fold.found else '') ~ (message['content'] | trim) -%}
{%- set fold.found = true -%}
{%- endfor -%}
{%- if fold.found -%}
{%- for message in messages if message['role'] != 'system' -%}
{%- if fold.turns and fold.turns[-1]['role'] == message['role'] -%}
{%- set both = fold.turns[-1]['content'] ~ '\n\n' ~ message['content'] -%}
{%- set fold.turns = fold.turns[:-1] + [{'role': message['role'], 'content': both}] -%}
{%- else -%}
{%- set fold.turns = fold.turns + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- if fold.system and fold.turns and fold.turns[0]['role'] == 'user' -%}
{%- set both = fold.system ~ '\n\n' ~ fold.turns[0]['content'] -%}
{%- set fold.turns = [{'role': 'user', 'content': both}] + fold.turns[1:] -%}
{%- elif fold.system -%}
{%- set fold.turns = [{'role': 'user', 'content': fold.system}] + fold.turns -%}
{%- endif -%}
{%- set messages = fold.turns -%}
{%- endif -%}{{ '' }}"""
_WITH_SYSTEM: tuple[Message, ...] = ({"role": "system", "content": "zero"}, {"role": "user", "content": "one"})


class ChatTemplateError(DlmTuiError):
    """A chat template that cannot render a conversation."""


class _Refused(Exception):
    """The template itself says that it does not take these messages."""


class TemplateWorker:
    """One worker process, started on first use and again after it had to be ended. Thread-safe."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(
        self, template: str, messages: Sequence[Message], *, generate: bool, variables: Mapping[str, Any]
    ) -> str:
        """The rendered text. Raises `_Refused` when the template says no, ChatTemplateError when it cannot go on."""
        if len(template) > _TEMPLATE_LIMIT:
            raise ChatTemplateError(f"it is longer than {_TEMPLATE_LIMIT} characters")
        request = {
            "template": template,
            "messages": [dict(message) for message in messages],
            "generate": generate,
            "variables": dict(variables),
            "seconds": self.seconds,
        }
        with self._lock:
            answer = self._ask(json.dumps(request).encode() + b"\n")
        if "refused" in answer:
            raise _Refused(answer["refused"])
        if "error" in answer:
            raise ChatTemplateError(answer["error"])
        return answer["text"]

    def close(self) -> int | None:
        """End the worker; how it ended, as `subprocess` says it, None without one."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        return None if process is None else process.returncode

    def _ask(self, line: bytes) -> dict[str, str]:
        for fresh in (False, True):
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                return self._reply(process)
            except (BrokenPipeError, EOFError) as error:
                code = self.close()
                if code is not None and -code == getattr(signal, "SIGPROF", None):
                    raise self._too_long() from None
                if fresh:
                    raise ChatTemplateError("the process that renders it ended") from error
            except KeyboardInterrupt:  # what it still has to say would be taken for the next answer
                self.close()
                raise
        raise AssertionError("unreachable")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            worker = Path(__file__).with_name("chat_worker.py")
            self._process = subprocess.Popen(
                python_words(str(worker)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                **OWN_GROUP,  # the worker ends with its stdin
            )
            atexit.register(self.close)
        return self._process

    def _too_long(self) -> ChatTemplateError:
        return ChatTemplateError(f"it takes longer than {self.seconds:g} seconds")

    def _reply(self, process: subprocess.Popen[bytes]) -> dict[str, str]:
        """The next line. Raises ChatTemplateError where none comes, EOFError when the worker has ended."""
        assert process.stdout is not None
        patience = max(_PATIENCE, self.seconds) if hasattr(signal, "setitimer") else self.seconds
        deadline = time.monotonic() + patience
        received = bytearray()
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                self.close()
                raise self._too_long()
            piece = os.read(process.stdout.fileno(), 1 << 20)
            if not piece:
                raise EOFError
            received += piece
        reply: dict[str, str] = json.loads(received)
        return reply


_worker = TemplateWorker()


def rendered_plainly(template: str, messages: Sequence[Message], variables: Mapping[str, str]) -> str:
    """A question as somebody renders it who does nothing but that, `variables` beside the messages.

    Raises ChatTemplateError, also where the template refuses.
    """
    try:
        return _worker.render(template, messages, generate=True, variables=variables)
    except _Refused as error:
        raise ChatTemplateError(str(error)) from error


class ChatRenderer:
    """Renders conversations for one tokenizer.

    A tokenizer without a chat template is given the plain one (`plain_template`), so that everything that reads it
    later (stored adapters, exports) has the same form.
    """

    def __init__(self, tokenizer: Any, base: str, worker: TemplateWorker | None = None) -> None:
        self.base = base
        self.prefix = leading_tokens(tokenizer)
        self._tokenizer = tokenizer
        self._worker = worker or _worker
        self._own = getattr(tokenizer, "chat_template", None)
        if not self._own:
            tokenizer.chat_template = plain_template(tokenizer, self.prefix)

    @property
    def template(self) -> str:
        """The template's source; of several the one called `default`, else the first by name."""
        return str(chosen_template(self._tokenizer.chat_template))

    @property
    def has_own_template(self) -> bool:
        """Whether the tokenizer's template is still the one that the base's folder has."""
        return bool(self._tokenizer.chat_template == self._own)

    def fold_for_others(self) -> None:
        """Let the tokenizer's template itself do with a system role that it refuses, or drops, what `text` does: who
        reads an export renders the template and does nothing else."""
        with contextlib.suppress(ChatTemplateError):
            meant = self.text(_WITH_SYSTEM, generate=True)
            if meant != self._plainly(self.template):
                folding = _FOLDING + self.template
                if meant == self._plainly(folding):
                    self._put(folding)

    def _plainly(self, template: str) -> str | None:
        try:
            return self._worker.render(template, _WITH_SYSTEM, generate=True, variables=self._variables)
        except _Refused:
            return None

    def _put(self, template: str) -> None:
        several = self._tokenizer.chat_template
        if isinstance(several, dict):
            name = next(name for name in ("default", *sorted(several)) if several.get(name))
            self._tokenizer.chat_template = {**several, name: template}
        else:
            self._tokenizer.chat_template = template

    def text(self, messages: Sequence[Message], *, generate: bool = False) -> str:
        """The conversation as text, with `generate` up to where the answer begins.

        Where the template refuses the system role, or drops it without a word, its text stands before the first user
        turn; where it demands that user and assistant alternate, turns of one speaker are joined. Raises
        ChatTemplateError with one sentence.
        """
        try:
            try:
                rendered = self._render(messages, generate)
            except _Refused:
                return self._render(alternating(messages), generate)
            if all(message["content"].strip() in rendered for message in messages if message["role"] == "system"):
                return rendered
            return self._render(alternating(messages), generate)
        except _Refused as error:
            reason = str(error)
        except ChatTemplateError as error:
            reason = str(error)
        first = (reason.strip().splitlines() or ["no reason given"])[0]
        raise ChatTemplateError(f"the chat template of {self.base} cannot be used: {first}; mend its chat_template")

    def _render(self, messages: Sequence[Message], generate: bool) -> str:
        return self._worker.render(self.template, messages, generate=generate, variables=self._variables)

    @property
    def _variables(self) -> dict[str, Any]:
        names = self._tokenizer.special_tokens_map
        return {name: [*map(str, v)] if isinstance(v, (list, tuple)) else str(v) for name, v in names.items()}


def alternating(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The same conversation without a system role: its text before the first user turn, turns of one speaker joined."""
    system = "\n\n".join(message["content"].strip() for message in messages if message["role"] == "system")
    turns: list[dict[str, str]] = []
    for message in messages:
        if message["role"] == "system":
            continue
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1]["content"] += f"\n\n{message['content']}"
        else:
            turns.append({"role": message["role"], "content": message["content"]})
    if system:
        if turns and turns[0]["role"] == "user":
            turns[0]["content"] = f"{system}\n\n{turns[0]['content']}"
        else:
            turns.insert(0, {"role": "user", "content": system})
    return turns


def chosen_template(templates: Any) -> Any:
    """Of several templates the one called `default`, else the first by name; what is one alone, or none, as it is."""
    if isinstance(templates, dict) and templates:
        return templates.get("default") or templates[min(templates)]
    return templates


def plain_template(tokenizer: Any, prefix: Sequence[int] = ()) -> str:
    """The template of a base that has none: question, line feed, answer, end of text; what the tokenizer adds in front.

    System text stands before the question with a blank line between them.
    """
    front = "".join(tokenizer.convert_ids_to_tokens(list(prefix)))
    return (
        f"{{{{ {json.dumps(front, ensure_ascii=False)} }}}}"
        "{%- for message in messages %}{{ message['content'] }}"
        "{%- if message['role'] == 'assistant' %}{{ eos_token }}"
        "{%- elif message['role'] == 'system' %}{{ '\\n\\n' }}"
        "{%- else %}{{ '\\n' }}{%- endif %}{%- endfor %}"
    )


def leading_tokens(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer by itself puts before a text; what it puts behind one (end of text) has its own rule."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    places = range(len(full) - len(plain) + 1)
    return next((full[:start] for start in places if full[start : start + len(plain)] == plain), [])
