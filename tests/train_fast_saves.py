"""Runs `opro.finetune` with a checkpoint at nearly every step, for tests that kill it."""

import sys

from evaluators.finetuning import train
from opro.cli import run_verb
from opro.finetune import main

train.SAVE_SECONDS, train.SAVE_SHARE = 0.0, 1.0
if __name__ == "__main__":
    sys.exit(run_verb(main))
