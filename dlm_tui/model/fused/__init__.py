"""The fused forward of the described decoder families: packed weights, one kv_cache, and the compiled decode step. Needs torch."""
