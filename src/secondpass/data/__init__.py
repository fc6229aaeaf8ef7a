"""Files of texts and of records about them."""
