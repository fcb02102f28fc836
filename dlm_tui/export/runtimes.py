"""The foreign runtimes an export is tried in. Runs only inside the child of `parity_child`; plain lists in and out."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from dlm_tui.model.pages import drop_weight_pages, give_back_freed

Vector = npt.NDArray[np.float32]


class _Token(msgspec.Struct):
    id: int
    logprob: float | None  # null where the numbers overflow


class _Step(msgspec.Struct):
    top_logprobs: list[_Token]


class _Completion(msgspec.Struct):
    """What is read of a completion: its text and bytes per token would be a gigabyte of objects for 262k entries."""

    completion_probabilities: list[_Step]


class Runtime(Protocol):
    """One loaded export."""

    label: str

    @property
    def tokens_per_second(self) -> float | None:
        """Over all greedy answers so far, None where it is not told."""

    def logprobs(self, prompts: Sequence[Sequence[int]]) -> Iterator[Vector]:
        """log p of every token after each prompt, in nats, [vocab]."""

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
        """The `tokens` likeliest tokens one after another behind each prompt, past any end-of-text token."""

    def followed(self, prompt: Sequence[int], said: Sequence[int]) -> list[int]:
        """The likeliest token at every step of the continuation `said` of a prompt."""

    def tokenize(self, text: str) -> list[int] | None:
        """Token ids of raw text by the runtime's own tokenizer, None when it has none of its own."""


class LlamaCpp:
    """A real llama-server on a free loopback port: no prompt cache, one thread. Unless it is to run `as_read`, that is
    with its own cache type (float16) and attention, its cache is float32 and flash attention off, so that it computes
    what the weights say and nothing else."""

    def __init__(
        self,
        model: str,
        loras: Sequence[tuple[str, float]],
        vocab: int,
        context_length: int,
        *,
        embeds: bool = False,
        as_read: bool = False,
    ) -> None:
        import xllamacpp

        self.label = f"llama.cpp (xllamacpp {xllamacpp.__version__}{', its own settings' if as_read else ''})"
        self._vocab = vocab
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in loras]
        params.n_ctx = context_length
        params.n_parallel = 1
        params.n_gpu_layers = 0
        if not as_read:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.fit_params = False
        params.cache_ram_mib = 0
        params.warmup = False
        params.cpuparams.n_threads = 1
        params.verbosity = 1  # errors alone
        if embeds:
            params.embedding = True
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
            params.embd_normalize = -1
            params.n_batch = params.n_ubatch = max(512, context_length)  # a pooled input has to fit into one batch
        self._said, self._milliseconds = 0, 0.0
        self._server = xllamacpp.Server(params)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=600) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path} answered {error.code}: {error.read(400).decode(errors='replace')}") from error

    def logprobs(self, prompts: Sequence[Sequence[int]]) -> Iterator[Vector]:
        for ids in prompts:
            yield self._logprobs(ids)
            give_back_freed()  # a vocabulary as text and objects, in the memory of a thread that has ended
            drop_weight_pages()

    def _logprobs(self, ids: Sequence[int]) -> Vector:
        # the bias only steers which token is sampled; the reported log-probabilities are those before it
        body = {"prompt": list(ids), "n_predict": 1, "n_probs": self._vocab, "temperature": 0.0, "cache_prompt": False}
        answer = self._post("/completion", {**body, "logit_bias": [[int(ids[-1]), 1000.0]]})
        found = np.full(self._vocab, np.nan, dtype=np.float32)
        for entry in msgspec.json.decode(answer, type=_Completion).completion_probabilities[0].top_logprobs:
            if entry.logprob is not None:
                found[entry.id] = entry.logprob
        return found

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
        return (self._greedy(ids, tokens) for ids in prompts)

    def _greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        said: list[int] = []
        while len(said) < tokens:  # generation stops at an end-of-text token: ask on from there
            body = {"prompt": [*ids, *said], "n_predict": tokens - len(said), "temperature": 0.0}
            answer = json.loads(self._post("/completion", {**body, "cache_prompt": False, "return_tokens": True}))
            more, timings = answer["tokens"], answer["timings"]
            if not more:
                break
            self._said += int(timings["predicted_n"])
            self._milliseconds += float(timings["predicted_ms"])
            said.extend(int(token) for token in more)
        return said[:tokens]

    def followed(self, prompt: Sequence[int], said: Sequence[int]) -> list[int]:
        return [self._next([*prompt, *said[:step]]) for step in range(len(said))]

    def _next(self, ids: Sequence[int]) -> int:
        # the prompt grows by a token from question to question, so that only this one is computed
        body = {"prompt": list(ids), "n_predict": 1, "temperature": 0.0, "cache_prompt": True, "return_tokens": True}
        tokens = json.loads(self._post("/completion", body))["tokens"]
        return int(tokens[0]) if tokens else -1

    def tokenize(self, text: str) -> list[int] | None:
        answer = json.loads(self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True}))
        return [int(token) for token in answer["tokens"]]

    def embedding(self, ids: Sequence[int]) -> Vector:
        """The mean over `ids` of the hidden states after the final norm, [hidden], adapters off."""
        answer = json.loads(self._post("/embeddings", {"content": list(ids), "embd_normalize": -1}))
        [row] = answer[0]["embedding"]
        return np.array(row, dtype=np.float32)

    @property
    def tokens_per_second(self) -> float | None:
        return 1000.0 * self._said / self._milliseconds if self._milliseconds else None


class Transformers:
    """A causal LM of transformers, in its own process, one thread, CPU."""

    def __init__(self, model: Any, label: str) -> None:
        import torch

        self._torch = torch
        torch.set_num_threads(1)
        self.label = label
        self._model = model.eval()

    def _last(self, ids: Sequence[int]) -> Any:
        torch = self._torch
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([list(ids)]), logits_to_keep=1).logits[0, -1]
            return torch.log_softmax(logits.double(), dim=-1)

    def logprobs(self, prompts: Sequence[Sequence[int]]) -> Iterator[Vector]:
        return (self._last(ids).float().numpy() for ids in prompts)

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
        for ids in prompts:
            said: list[int] = []
            for _ in range(tokens):
                said.append(int(self._last([*ids, *said]).argmax()))
            yield said

    def followed(self, prompt: Sequence[int], said: Sequence[int]) -> list[int]:
        torch = self._torch
        # what comes behind the last step is not asked for
        ids = torch.tensor([[*prompt, *said[:-1]]])
        with torch.inference_mode():
            logits = self._model(input_ids=ids, logits_to_keep=len(said)).logits[0]
            return [int(token) for token in logits.argmax(dim=-1)]

    def tokenize(self, text: str) -> list[int] | None:
        return None

    @property
    def tokens_per_second(self) -> float | None:
        return None


def as_loaded(model: str, adapter: str | None, dtype: str, quantize: str | None = None) -> Transformers:
    """The export as another program loads it: AutoModelForCausalLM, with PEFT when `adapter` is given.

    `dtype` is float32, or auto for what the folder itself says. A quantised base multiplies by the numbers that its
    weights stand for, as in the workbench.
    """
    import transformers

    from dlm_tui.model.quantised import compute_exactly, quantisation_config
    from dlm_tui.model.stored import float32_skeleton, widen_beside

    settings = {} if quantize is None else {"quantization_config": quantisation_config(quantize)}
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **settings
    )
    if getattr(loaded, "is_quantized", False):
        if dtype == "float32":
            widen_beside(loaded, float32_skeleton(loaded))
        compute_exactly(loaded)
    label = f"transformers {transformers.__version__}"
    if adapter is not None:
        import peft

        loaded = peft.PeftModel.from_pretrained(loaded, adapter)
        label = f"peft {peft.__version__}, {label}"
    return Transformers(loaded, label)
