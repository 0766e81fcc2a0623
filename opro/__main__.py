"""The `opro` command without an installation: python -m opro VERB ..."""

import sys

from opro.cli import command

if __name__ == "__main__":
    sys.exit(command())
