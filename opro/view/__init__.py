"""One local page over all runs."""
