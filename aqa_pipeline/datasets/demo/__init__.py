"""A rendered diving competition."""
