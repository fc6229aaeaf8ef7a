"""Engines: rows of token ids to logits. Below here there are tensors, above only texts and numbers."""
