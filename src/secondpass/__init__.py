"""secondpass: the second pass of retrieval."""

__version__ = "0.1.0"
