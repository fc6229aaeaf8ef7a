"""Checkpoints: files on disk or on a hub, and their weights."""
