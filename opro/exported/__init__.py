"""Scripts that `opro.export` copies into a folder: they need nothing of this project."""
