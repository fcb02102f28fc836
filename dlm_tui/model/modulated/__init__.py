"""Adapters that are low-rank pairs with a free coefficient: ModulatedLoRA, ModulatedPiSSA and kept rounds of both."""
