"""Two llama.cpp servers in this process: one for embeddings, one for answers. No torch.

An embedding would wait behind an answer in the same one, and it cannot carry adapter scales: the one for embeddings has
no adapters at all.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx
import xllamacpp

from dlm_tui.errors import DlmTuiError

LIMIT = 512
"""Tokens that are embedded. A mean-pooled input must fit one micro-batch."""
PATIENCE_SECONDS = 600.0


class Instance:
    """One server on a free loopback port, behind a key that only this process knows."""

    def __init__(self, params: Any) -> None:
        key = secrets.token_hex(24)
        params.api_keys = [key]
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:  # the binding raises bare ones
            raise DlmTuiError(f"llama.cpp does not load {params.model.path}: {error}") from None
        self.client = httpx.AsyncClient(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=PATIENCE_SECONDS,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """A JSON answer. Raises DlmTuiError with what llama.cpp says."""
        try:
            answer = await self.client.post(path, json=body)
        except httpx.HTTPError as error:
            raise DlmTuiError(f"llama.cpp does not answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise DlmTuiError(f"llama.cpp answered {answer.status_code}: {answer.text[:300]}")
        return answer.json()

    async def vocab_size(self) -> int:
        """How many tokens the model has. Raises DlmTuiError."""
        try:
            answer = await self.client.get("/v1/models")
            return int(answer.json()["data"][0]["meta"]["n_vocab"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise DlmTuiError(f"llama.cpp does not tell its vocabulary: {type(error).__name__}") from None

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed answer. Closing it ends the work in llama.cpp. Raises DlmTuiError."""
        try:
            async with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
                if answer.status_code != 200:
                    text = (await answer.aread()).decode(errors="replace")
                    raise DlmTuiError(f"llama.cpp answered {answer.status_code}: {text[:300]}")
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        yield json.loads(line[6:])
                    elif line.startswith("error: "):
                        raise DlmTuiError(f"llama.cpp failed: {line[7:300]}")
        except httpx.HTTPError as error:
            raise DlmTuiError(f"llama.cpp broke off: {type(error).__name__}") from None


def embedder(model: Path, most: int, threads: int | None = None) -> Instance:
    """The base alone, mean-pooled and not normalised: what the gate was trained on. It reads `most` tokens:
    started with more than the base reads alike (longrope), llama.cpp would read short prompts otherwise, too."""
    params = _common(model, threads)
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.embd_normalize = -1
    params.n_ctx = params.n_batch = params.n_ubatch = most
    params.n_parallel = 1
    return Instance(params)


def answerer(
    model: Path, adapters: Sequence[Path], rows: int, context_length: int, threads: int | None = None
) -> Instance:
    """Base and adapters, every adapter at scale 0 until a request says otherwise; `rows` answers at once."""
    params = _common(model, threads)
    # loaded at 0 each: `lora_init_without_apply` does not zero the scales
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters]
    params.n_ctx = context_length * rows
    params.n_parallel = rows
    return Instance(params)


def _common(model: Path, threads: int | None) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_gpu_layers = 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params = False
    params.cache_ram_mib = 0  # the prompt cache in memory knows nothing of the mix it was made under
    params.ctx_shift = False
    params.warmup = False
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or _cores()
    return params


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
