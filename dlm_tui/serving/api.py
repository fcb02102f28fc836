"""The routes of the server: OpenAI's interface, and ours for the gate's decisions. No torch."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.serving import requests, responses
from dlm_tui.serving.backend import Backend, BackendGone, Begun, Embedded, QueueFull, RoutedPrompt, Stream
from dlm_tui.serving.metrics import CONTENT_TYPE, Metrics
from dlm_tui.serving.responses import WEIGHTS_HEADER, AnswerForm
from dlm_tui.serving.security import BodyRefused
from dlm_tui.serving.views import Decision, Mixes, Models, UnknownModel, no_mixes

T = TypeVar("T")
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request, for whoever keeps book. Times in seconds; `at` since the epoch.

    `finish` is ok, or why it ended before: gone (the client hung up), failed.
    """

    at: float
    route: str
    decision: Decision
    prompt: str
    prompt_tokens: int
    answer_tokens: int
    first_token: float | None
    seconds: float
    finish: str


class Recorder(Protocol):
    """Whoever keeps book of the traffic; must return at once."""

    def record(self, served: Served) -> None: ...


class Api:
    """The endpoints over one backend."""

    def __init__(
        self,
        backend: Backend,
        metrics: Metrics,
        recorder: Recorder | None = None,
        mixes: Callable[[], Mixes] = no_mixes,
    ) -> None:
        self._backend, self._metrics, self._recorder, self._mixes = backend, metrics, recorder, mixes

    @property
    def _models(self) -> Models:
        """As they are now: a training may be taken in between two requests."""
        return Models(self._backend.adapters, self._mixes)

    def application(self) -> Starlette:
        """The Starlette application, without the guard."""
        routes = [
            self._route("/v1/chat/completions", self._chat, "POST"),
            self._route("/v1/completions", self._completion, "POST"),
            self._route("/v1/embeddings", self._embeddings, "POST"),
            self._route("/v1/route", self._routes, "POST"),
            self._route("/v1/models", self._list_models, "GET"),
            self._route("/v1/models/{name:path}", self._one_model, "GET"),
            self._route("/health", self._health, "GET"),
            self._route("/metrics", self._metrics_text, "GET"),
        ]

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            await self._backend.start()
            yield

        return Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: _not_found, 405: _not_found})

    def _route(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str) -> Route:
        name = path.partition("{")[0].rstrip("/")

        async def handle(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except ClientDisconnect:
                response = Response(status_code=499)  # never seen by anybody but the counters
            except Exception as error:
                response = _error_response(error)
            self._metrics.request(name, response.status_code)
            return response

        return Route(path, handle, methods=[method])

    async def _chat(self, request: Request) -> Response:
        asked = requests.decode(await request.body(), requests.ChatRequest)
        wanted = requests.chat_wanted(asked, self._models, _client(request), self._backend.rows)
        return await self._answer(request, wanted)

    async def _completion(self, request: Request) -> Response:
        asked = requests.decode(await request.body(), requests.CompletionRequest)
        wanted = requests.completion_wanted(asked, self._models, _client(request), self._backend.rows)
        return await self._answer(request, wanted)

    async def _answer(self, request: Request, wanted: requests.Wanted) -> Response:
        stream = self._backend.answer(wanted.ask)
        began = time.time(), time.monotonic()
        try:
            begun = await _unless_gone(request, stream.begun())
            book = _Book(self._metrics, self._recorder, began, request.url.path, wanted, begun)
            form = AnswerForm(wanted, begun)
            headers = {WEIGHTS_HEADER: begun.decision.header()}
            if wanted.stream:
                body = _events(stream, form, book, wanted)
                return _ClosingResponse(body, lambda: _close(stream, book), headers=headers)
            try:
                await _unless_gone(request, _collect(stream, form, book, wanted))
            finally:
                book.close()
        except BaseException:
            stream.close()
            raise
        return Response(form.whole(), media_type="application/json", headers=headers)

    async def _embeddings(self, request: Request) -> Response:
        asked = requests.decode(await request.body(), requests.EmbeddingsRequest)
        if asked.dimensions not in (None, self._backend.model.hidden_size):
            raise requests.BadRequest(f"embeddings have {self._backend.model.hidden_size} dimensions", "dimensions")
        self._models.view(asked.model)  # any of them has the base's embedding, a name that is none is told
        client = asked.user or _client(request)
        found = await self._each(request, asked.input, lambda text: self._backend.embed(client, text), Embedded)
        packed = asked.encoding_format == "base64"
        body = responses.embeddings(found, asked.model or "base", packed=packed)
        return Response(body, media_type="application/json")

    async def _routes(self, request: Request) -> Response:
        asked = requests.decode(await request.body(), requests.RouteRequest)
        client = asked.user or _client(request)
        found = await self._each(request, asked.input, lambda text: self._backend.route(client, text), RoutedPrompt)
        return Response(responses.routes(found), media_type="application/json")

    async def _each(
        self, request: Request, value: str | list[str], ask: Callable[[str], Stream], kind: type[T]
    ) -> list[T]:
        """One event of `kind` for each text, one after another: a long list is one turn in the queue at a time."""
        found: list[T] = []
        for text in requests.texts(value):
            stream = ask(text)
            try:
                event = await _unless_gone(request, stream.next())
            except BaseException:
                stream.close()
                raise
            assert isinstance(event, kind)
            found.append(event)
        return found

    async def _list_models(self, _: Request) -> Response:
        body = responses.models(self._models.listed(), self._backend.model)
        return Response(body, media_type="application/json")

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not name.strip():
            return await _not_found(request, HTTPException(404))
        self._models.view(name)
        return Response(responses.model(name, self._backend.model), media_type="application/json")

    async def _health(self, _: Request) -> Response:
        load, problem = self._backend.load, self._backend.problem
        if problem:
            failed = msgspec.json.encode({"status": "failed", "reason": problem})
            return Response(failed, 503, media_type="application/json")
        body = {"status": "ok", "running": load.running, "waiting": load.waiting}
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def _metrics_text(self, _: Request) -> Response:
        return Response(self._metrics.text(self._backend.load), media_type=CONTENT_TYPE)


class _Book:
    """Keeps book of one answer; closed once, however it ends."""

    def __init__(
        self,
        metrics: Metrics,
        recorder: Recorder | None,
        began: tuple[float, float],
        route: str,
        wanted: requests.Wanted,
        begun: Begun,
    ) -> None:
        self._metrics, self._recorder = metrics, recorder
        self._at, self._began = began
        self._route, self._wanted, self._begun = route, wanted, begun
        self._first: float | None = None
        self.tokens = 0
        self.finish = "gone"
        self._closed = False
        metrics.decision(begun.decision)

    def token(self, count: int) -> None:
        """`count` tokens were said."""
        if self._first is None:
            self._first = time.monotonic() - self._began
        self.tokens += count

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        seconds = time.monotonic() - self._began
        self._metrics.answer(self._begun.prompt_tokens, self.tokens, self._first, seconds)
        if self._recorder is not None:
            self._recorder.record(
                Served(
                    at=self._at,
                    route=self._route,
                    decision=self._begun.decision,
                    prompt=self._wanted.ask.question,
                    prompt_tokens=self._begun.prompt_tokens,
                    answer_tokens=self.tokens,
                    first_token=self._first,
                    seconds=seconds,
                    finish=self.finish,
                )
            )


async def _parts(
    stream: Stream, form: AnswerForm, book: _Book, wanted: requests.Wanted
) -> AsyncIterator[tuple[int, str, Any, str | None]]:
    """(choice, text, log-probabilities, finish) until every choice has ended, by itself or by a stop sequence."""
    left = set(range(wanted.ask.choices))
    while left:
        piece = await stream.piece()
        if piece.choice not in left:
            continue  # of a choice that a stop sequence has ended
        book.token(piece.tokens)
        shown, told, finish = form.take(piece.choice, piece.text, piece.tokens, piece.logprobs, piece.finish)
        if finish is not None:
            left.discard(piece.choice)
            if piece.finish is None:
                stream.stop_choice(piece.choice)
            if not left:
                book.finish = "ok"
        yield piece.choice, shown, told, finish


async def _collect(stream: Stream, form: AnswerForm, book: _Book, wanted: requests.Wanted) -> None:
    try:
        async for _ in _parts(stream, form, book, wanted):
            pass
    except DlmTuiError:
        book.finish = "failed"
        raise


async def _events(stream: Stream, form: AnswerForm, book: _Book, wanted: requests.Wanted) -> AsyncIterator[bytes]:
    """The answer as server-sent events; an error in its middle is an event of its own."""
    for event in form.opening():
        yield event
    try:
        async for choice, shown, told, finish in _parts(stream, form, book, wanted):
            if shown or told or finish is not None:
                yield form.piece(choice, shown, told, finish, last=book.finish == "ok")
    except DlmTuiError as error:
        book.finish = "failed"
        yield b"data: " + _error_response(error).body + b"\n\n"
        return
    yield form.closing()


def _close(stream: Stream, book: _Book) -> None:
    stream.close()
    book.close()


class _ClosingResponse(StreamingResponse):
    """A streamed answer that lets its rows go however it ends, also when it never began."""

    def __init__(self, body: AsyncIterator[bytes], close: Callable[[], None], headers: dict[str, str]) -> None:
        super().__init__(body, media_type="text/event-stream", headers={**_STREAM_HEADERS, **headers})
        self._close = close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. Raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect()
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client(request: Request) -> str:
    """Whose turn it is in the queue, where the request does not say: its address."""
    return request.client.host if request.client is not None else ""


def _error_response(error: Exception) -> Response:
    """The status and the error object of whatever went wrong; of the unexpected only its kind is told."""
    headers: dict[str, str] = {}
    match error:
        case BodyRefused():
            return Response(error.body, error.status, {"Connection": "close"}, media_type="application/json")
        case UnknownModel():
            status = 404
            body = responses.error(str(error), "invalid_request_error", code="model_not_found", param="model")
        case UsageError():
            status = 400
            body = responses.error(str(error), "invalid_request_error", param=getattr(error, "param", None))
        case QueueFull():
            status, headers = 429, {"Retry-After": "1"}
            body = responses.error(str(error), "rate_limit_error", code="queue_full")
        case BackendGone():
            status = 503
            body = responses.error(str(error), "server_error", code="stopping")
        case DlmTuiError():
            status, body = 500, responses.error(str(error), "server_error")
        case _:
            traceback.print_exception(error, file=sys.stderr)
            status, body = 500, responses.error(f"the server failed: {type(error).__name__}", "server_error")
    return Response(body, status, headers, media_type="application/json")


async def _not_found(request: Request, error: Exception) -> Response:
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (404, None)
    text = f"there is no {request.method} {request.url.path[:80]} here"
    body = responses.error(text, "invalid_request_error")
    return Response(body, status, headers, media_type="application/json")  # of 405 the headers say what is allowed
