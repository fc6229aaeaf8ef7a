"""Rerankers behind HTTP: this project's server, others that speak the same dialects, hosted APIs."""

from secondpass.remote.reranker import RemoteReranker

__all__ = ["RemoteReranker"]
