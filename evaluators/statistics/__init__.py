"""Statistics of predictions: they know that clips of one source are not independent."""
