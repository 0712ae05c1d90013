"""Stage one: every clip of a manifest through the backbone, once."""
