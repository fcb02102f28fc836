"""Chat templates: one renderer, bounded, and the same form for what is learned and what is asked."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from dlm_tui.model.base import Base, NoEmbedding
from dlm_tui.model.chat import ChatRenderer, ChatTemplateError, TemplateWorker, alternating
from tests.tiny_models import TEMPLATE, tiny_base, tiny_tokenizer

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
SYSTEM, ONE, TWO = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
)


def renderer(template: str | None, seconds: float = 60.0) -> ChatRenderer:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatRenderer(tokenizer, "test", TemplateWorker(seconds))


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{{ eos_token }}"
        "{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% generation %}"
        "{{ m.content | trim }}{% endgeneration %}{{ ns.n }}{% break %}{% endfor %}{{ dict(a=1) }}",
        "{% for m in messages %}\n    {{ m['content'].split('n') }}\n  {% endfor %}\n{{ strftime_now('%Y') }}\n",
    ],
)
def test_the_worker_renders_what_transformers_renders(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    for generate in (False, True):
        expected = tokenizer.apply_chat_template([SYSTEM, ONE, TWO], tokenize=False, add_generation_prompt=generate)
        worker = TemplateWorker()
        variables = dict(tokenizer.special_tokens_map)
        assert worker.render(template, [SYSTEM, ONE, TWO], generate=generate, variables=variables) == expected
        worker.close()


def test_a_refused_system_role_goes_before_the_first_user_turn() -> None:
    assert renderer(NO_SYSTEM).text([SYSTEM, ONE], generate=True) == "[user] Be brief.\n\none\n[model] "
    assert renderer(NO_SYSTEM).text([ONE, ONE, TWO]) == "[user] one\n\none\n[assistant] two<|im_end|>\n"
    assert renderer(DROPS_SYSTEM).text([SYSTEM, ONE]) == "<user>Be brief.\n\none\n"
    assert renderer(TEMPLATE).text([SYSTEM, ONE]).startswith("<|im_start|>system\nBe brief.")
    assert alternating([SYSTEM, TWO])[0] == {"role": "user", "content": "Be brief."}


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than"),
        (
            "{% set ns = namespace(x='0123456789abcdef') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}"
            "{% endfor %}{{ ns.x }}",
            "memory",
        ),
        ("{{ 'x' * 4000000000 }}", "memory"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 16000000 characters"),
        ("{{ messages[0].__class__.__mro__ }}{{ ''.__class__.mro() }}", "unsafe|undefined"),
        ("{% for %}", "Expected|unexpected|expected"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception('never') }}", "never"),
        ("x" * 1_000_001, "longer than 1000000 characters"),
    ],
    ids=["loops", "doubling", "product", "output", "escape", "syntax", "division", "refusal", "size"],
)
def test_a_hostile_template_is_one_sentence_soon(template: str, reason: str) -> None:
    guarded = renderer(template, seconds=2.5)
    began = time.monotonic()
    with pytest.raises(ChatTemplateError, match=reason) as caught:
        guarded.text([ONE], generate=True)
    assert time.monotonic() - began < 30
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the chat template of test cannot be used: ")
    guarded._tokenizer.chat_template = TEMPLATE  # and the worker, or the next one, goes on
    assert guarded.text([ONE]) == "<|im_start|>user\none<|im_end|>\n"


def test_a_worker_that_the_machine_leaves_waiting_is_not_too_long() -> None:
    worker = TemplateWorker(seconds=0.2)
    worker.render("x", [], generate=False, variables={})
    assert worker._process is not None
    worker._process.send_signal(signal.SIGSTOP)
    go_on = threading.Timer(0.6, worker._process.send_signal, [signal.SIGCONT])
    go_on.start()
    assert worker.render("y", [], generate=False, variables={}) == "y"
    go_on.join()
    worker.close()


def test_a_worker_without_an_owner_ends_when_its_time_is_over() -> None:
    worker = TemplateWorker(seconds=0.5)
    worker.render("x", [], generate=False, variables={})
    process = worker._process
    assert process is not None and process.stdin is not None
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    request = {"template": endless, "messages": [], "generate": False, "variables": {}, "seconds": 0.5}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.close()
    assert process.wait(120) == -signal.SIGPROF


def test_a_worker_ends_with_its_owner_and_is_started_again_when_it_died() -> None:
    worker = TemplateWorker()
    worker.render("x", [], generate=False, variables={})
    first = worker._process
    assert first is not None and first.stdin is not None
    first.kill()
    first.wait()
    assert worker.render("y", [], generate=False, variables={}) == "y"
    second = worker._process
    assert second is not None and second.stdin is not None and second is not first
    second.stdin.close()
    assert second.wait(120) == 0


def without_template(folder: Path, *, adds_end: bool) -> Base:
    """A base whose tokenizer has no template and, with `adds_end`, puts begin and end around every text."""
    base = tiny_base(folder)
    base.tokenizer.chat_template = None
    if adds_end:
        base.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
        )
    return Base(base.model, base.tokenizer, base.source, base.identity)


@pytest.mark.parametrize("adds_end", [False, True])
def test_without_a_template_question_row_and_pair_are_one_rendering(tmp_path: Path, adds_end: bool) -> None:
    base = without_template(tmp_path / "m", adds_end=adds_end)
    front = "<|im_start|>" if adds_end else ""
    asked = base.chat("Where?")
    row, question = base.conversation(
        [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    )
    assert base.tokenizer.decode(asked) == f"{front}Where?\n"
    assert base.tokenizer.decode(row) == f"{front}Where?\nHere.<|im_end|>"
    assert row[:question] == asked
    assert base.tokenizer.decode(base.chat("Where?", "Be brief.")) == f"{front}Be brief.\n\nWhere?\n"
    assert base.tokenizer.decode(base.passage("A text.")) == f"{front}A text.<|im_end|>"
    assert base.tokenizer.decode(base.passage("A text.<|im_end|>")) == f"{front}A text.<|im_end|>"


def test_end_of_text_is_there_once_when_the_template_forgets_it(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "m")
    pair = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    base.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    ids, _ = base.conversation(pair)
    assert base.tokenizer.decode(ids) == "user: Q\nassistant: A\n<|im_end|>"
    base.tokenizer.chat_template = TEMPLATE
    ids, question = base.conversation(pair)
    assert ids.count(1) == 2 and ids[:question] == base.chat("Q")


def test_a_token_without_an_embedding_row_is_named(tmp_path: Path) -> None:
    base: Any = tiny_base(tmp_path / "m")
    base.tokenizer.add_tokens(["<harbour>"])
    base = Base(base.model, base.tokenizer, base.source, base.identity)
    assert base.encode_raw("to the harbour now")
    for encode in (base.encode_raw, base.chat, base.passage):
        with pytest.raises(NoEmbedding, match="no embedding for the token '<harbour>'"):
            encode("to the <harbour> now")
