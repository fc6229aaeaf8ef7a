"""The one path from pairs to scores."""
