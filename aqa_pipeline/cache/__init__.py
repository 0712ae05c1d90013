"""The feature cache: the contract between stage one and stage two."""
