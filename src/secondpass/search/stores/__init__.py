"""Where an index is kept: a Protocol, and one file an engine."""
