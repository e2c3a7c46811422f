"""Causal language models: found by name, loaded once, and compared token by token."""
