"""The gate beside a llama-server export: a client that embeds the prompt can set each adapter's scale itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.files import json_bytes, write_atomic

if TYPE_CHECKING:
    from dlm_tui.gate import Gate
    from dlm_tui.model.identity import BaseIdentity

EMBEDDING = (
    "mean over tokens of the base's last hidden state after the final norm, adapters off, raw prompt without a chat "
    "template, first 512 tokens, float32"
)
NETWORK = "softmax(2.weight @ gelu(0.weight @ x + 0.bias) + 2.bias), exact gelu"


def write_gate(
    folder: Path, gate: Gate, identity: BaseIdentity, lora_ids: Mapping[str, int], static: Mapping[str, float]
) -> None:
    """`gate.json` and, for a trained gate, `gate.safetensors` as the store keeps it.

    `lora_ids` maps adapter names to llama-server's numbers; number 0 is the whole mix.
    """
    trained = gate.network is not None
    description = {
        "adapter_names": list(gate.names),
        "mode": "trained" if trained else "uniform",
        "input_dim": gate.config.input_dim,
        "hidden_proj_dim": gate.config.hidden_proj_dim,
        "entropy_lambda": gate.config.entropy_lambda,
        "embedding": EMBEDDING,
        "network": NETWORK,
        "base": {
            "id": identity.id,
            "revision": identity.revision,
            "weights_sha256": identity.weights_sha256,
            "tokenizer_sha256": identity.tokenizer_sha256,
        },
        "static_mix": dict(static),
        "mix_lora_id": 0,
        "lora_ids": dict(lora_ids),
    }
    if gate.network is not None:
        from safetensors.torch import save

        tensors = {key: value.detach().float().contiguous() for key, value in gate.network.state_dict().items()}
        write_atomic(folder / "gate.safetensors", save(tensors))
    write_atomic(folder / "gate.json", json_bytes(description))
