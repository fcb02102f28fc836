"""What an export can be asked for: targets and quantisations. Plain names, so that the screen may import them.

The order is the order in which lists show them; the first of each is the default.
"""

from __future__ import annotations

TARGET_TEXTS = {
    "peft": "one PEFT folder that transformers and others load",
    "ollama": "one merged GGUF and a Modelfile",
    "llama-server": "base, mix and every adapter as GGUF, and a start script",
    "vllm": "one PEFT folder of uniform rank and the serve command",
    "merged": "a Hugging Face folder with the mix merged into the weights",
}
"""Target name to what it writes, in a few words."""

TARGETS = tuple(TARGET_TEXTS)
GGUF_TARGETS = ("ollama", "llama-server")
"""The targets that a quantisation applies to."""

QUANTS = (
    "q4_k_m", "q4_k_s", "q5_k_m", "q5_k_s", "q6_k", "q8_0", "iq4_xs", "q4_0", "q4_1", "q5_0", "q5_1",
    "f16", "bf16", "f32",
)  # fmt: skip
"""llama.cpp's names in lower case; a request may spell them in any case."""

MERGED_QUANTS = ("f32", "f16", "bf16")
"""What merged safetensors are written as."""

EVEN_QUANTS = ("f32", "f16", "bf16", "q8_0")
"""Those whose rounding an importance matrix does not change."""
