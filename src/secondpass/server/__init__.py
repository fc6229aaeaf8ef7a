"""One server that every rerank client already speaks to: dialects over a service that knows none of them."""
