"""Runs `opro.finetune` with a checkpoint at nearly every step, for tests that kill it."""

import sys

from evaluators import finetune
from opro.finetune import main
from opro.flags import run_verb

finetune.SAVE_SECONDS, finetune.SAVE_SHARE = 0.0, 1.0
if __name__ == "__main__":
    sys.exit(run_verb(main))
