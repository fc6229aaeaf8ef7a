"""Texts to token ids: tokenizer, recipes, windows over long documents."""
