"""Finds leaks, shortcuts and faults in a clip set."""
