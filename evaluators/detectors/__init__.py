"""Voice activity detectors and recognisers, for comparison."""
