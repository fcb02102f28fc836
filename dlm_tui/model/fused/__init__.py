"""The fused forward of Llama's kin: packed weights, one kv_cache, and the compiled decode step. Needs torch."""
