"""Files of texts, read in one place."""
