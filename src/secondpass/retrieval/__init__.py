"""The first stage: finds the candidates that a reranker then reads."""
