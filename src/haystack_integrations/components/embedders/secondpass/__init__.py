from haystack_integrations.components.embedders.secondpass.embedder import (
    SecondpassDocumentEmbedder,
    SecondpassTextEmbedder,
)

__all__ = ["SecondpassDocumentEmbedder", "SecondpassTextEmbedder"]
