"""The foreign runtimes an export is tried in. Runs only inside the child of `parity_child`; plain lists in and out."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


class Runtime(Protocol):
    """One loaded export."""

    label: str

    def logprobs(self, ids: Sequence[int]) -> Vector:
        """log p of every token after `ids`, in nats, [vocab]."""

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        """The `tokens` likeliest tokens one after another, past any end-of-text token."""

    def tokenize(self, text: str) -> list[int] | None:
        """Token ids of raw text by the runtime's own tokenizer, None when it has none of its own."""


class LlamaCpp:
    """A real llama-server on a free loopback port: float32 cache, no flash attention, no prompt cache, one thread."""

    def __init__(self, model: str, loras: Sequence[tuple[str, float]], vocab: int, context_length: int) -> None:
        import xllamacpp

        self.label = f"llama.cpp (xllamacpp {xllamacpp.__version__})"
        self._vocab = vocab
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in loras]
        params.n_ctx = context_length
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.fit_params = False
        params.cache_ram_mib = 0
        params.warmup = False
        params.cpuparams.n_threads = 1
        params.verbosity = 0
        self._server = xllamacpp.Server(params)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=600) as answer:
                result: dict[str, Any] = json.load(answer)
                return result
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path} answered {error.code}: {error.read(400).decode(errors='replace')}") from error

    def logprobs(self, ids: Sequence[int]) -> Vector:
        # the bias only steers which token is sampled; the reported log-probabilities are those before it
        body = {"prompt": list(ids), "n_predict": 1, "n_probs": self._vocab, "temperature": 0.0, "cache_prompt": False}
        answer = self._post("/completion", {**body, "logit_bias": [[int(ids[-1]), 1000.0]]})
        found = np.full(self._vocab, np.nan, dtype=np.float32)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        said: list[int] = []
        while len(said) < tokens:  # generation stops at an end-of-text token: ask on from there
            body = {"prompt": [*ids, *said], "n_predict": tokens - len(said), "temperature": 0.0}
            more = self._post("/completion", {**body, "cache_prompt": False, "return_tokens": True})["tokens"]
            if not more:
                break
            said.extend(int(token) for token in more)
        return said[:tokens]

    def tokenize(self, text: str) -> list[int] | None:
        answer = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return [int(token) for token in answer["tokens"]]


class Transformers:
    """The export as another program loads it: AutoModelForCausalLM, with PEFT when `adapter` is given. float32, CPU."""

    def __init__(self, model: str, adapter: str | None) -> None:
        import peft
        import torch
        import transformers

        self._torch = torch
        torch.set_num_threads(1)
        self.label = f"transformers {transformers.__version__}"
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        if adapter is not None:
            loaded = peft.PeftModel.from_pretrained(loaded, adapter)
            self.label = f"peft {peft.__version__}, {self.label}"
        self._model = loaded.eval()

    def _last(self, ids: Sequence[int]) -> Any:
        torch = self._torch
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
            return torch.log_softmax(logits.double(), dim=-1)

    def logprobs(self, ids: Sequence[int]) -> Vector:
        found: Vector = self._last(ids).float().numpy()
        return found

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        said: list[int] = []
        for _ in range(tokens):
            said.append(int(self._last([*ids, *said]).argmax()))
        return said

    def tokenize(self, text: str) -> list[int] | None:
        return None
