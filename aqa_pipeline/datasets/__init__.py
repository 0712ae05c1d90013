"""From a data set or a CSV to a checked manifest."""
