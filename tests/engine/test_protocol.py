"""The wire's own promises: typed both ways, and nobody waits for a line that cannot be read."""

from __future__ import annotations

import asyncio
import sys
import typing
from pathlib import Path

import msgspec
import pytest

from dlm_tui.engine import protocol
from dlm_tui.engine.process import ChildProcess, EngineFailed
from dlm_tui.engine.protocol import Evaluate, Evaluated, GetStatus, Status, decode_event, encode, unreadable
from tests.tui.recorded import EVALUATION


def reachable(kind: object, found: set[object]) -> set[object]:
    """Every type in the fields of `kind`, at any depth."""
    if kind in found:
        return found
    found.add(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for hint in typing.get_type_hints(kind).values():
            reachable(hint, found)
    for argument in typing.get_args(kind):
        reachable(argument, found)
    return found


def test_nothing_on_the_wire_is_untyped() -> None:
    found = reachable(protocol.Request, set()) | reachable(protocol.Event, set())
    assert protocol.EvaluationReport in found and protocol.ExportReport in found
    assert typing.Any not in found and dict not in found and list not in found


def test_a_report_comes_over_as_it_was() -> None:
    event = decode_event(encode(Evaluated(id=3, report=EVALUATION)))
    assert event == Evaluated(id=3, report=EVALUATION)
    assert list(EVALUATION.as_json()) == [field.name for field in msgspec.structs.fields(EVALUATION)]


def test_an_unreadable_answer_ends_its_request_and_other_lines_do_not() -> None:
    answer = encode(Evaluated(id=3, report=EVALUATION)).replace(b'"accuracy":0.92', b'"accuracy":null')
    with pytest.raises(msgspec.DecodeError) as caught:
        decode_event(answer)
    ended = unreadable(answer, caught.value)
    assert ended is not None and ended.id == 3 and "evaluated" in ended.text and "accuracy" in ended.text
    for line in (b'{"type":"progress","id":3}', b"no json", b'{"id":3}', b'"evaluated"'):
        with pytest.raises(msgspec.DecodeError) as caught:
            decode_event(line)
        assert unreadable(line, caught.value) is None


CHILD = """
import sys
from dlm_tui.engine.protocol import PROTOCOL, Hello, Status, decode_request, encode
out = sys.stdout.buffer
def send(data):
    out.write(data); out.flush()
send(encode(Hello(protocol=PROTOCOL, versions={}, device="cpu", dtype="float32", pid=1)))
for line in sys.stdin.buffer:
    request = decode_request(line)
    if type(request).__name__ == "Evaluate":
        send(b'{"type":"evaluated","id":%d,"report":{"accuracy":null}}\\n' % request.id)
    else:
        send(encode(Status(id=request.id, rss=1, threads=1, tier="", uptime=0.0, device="cpu")))
"""


async def test_a_client_is_told_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    child = ChildProcess("odd_child")
    await child.start()
    try:
        with pytest.raises(EngineFailed, match="cannot be read"):
            await asyncio.wait_for(child.ask(Evaluate()), 30)
        assert isinstance(await asyncio.wait_for(child.ask(GetStatus()), 30), Status)
    finally:
        await child.close()
