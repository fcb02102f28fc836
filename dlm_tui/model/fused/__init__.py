"""The fused forward of the described families: packed weights, one kv_cache, the compiled decode step. Needs torch."""
