"""An OpenAI-compatible server that routes every request through the gate. Torch only below `native`."""
