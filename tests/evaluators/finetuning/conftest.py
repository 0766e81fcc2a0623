"""A small training of the pocket base, and the adapter it leaves."""

from pathlib import Path

import pytest
import torch

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.finetuning.adapter_folder import write_adapter
from evaluators.finetuning.memory import TrainingPlan
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.train import Machine, Training
from evaluators.manifest import read_manifest
from evaluators.splits import balanced_order

DEMO = Path(__file__).resolve().parents[3] / "data" / "demo"


@pytest.fixture(scope="session")
def labels():
    return ("SPEECH", "NONSPEECH")


@pytest.fixture(scope="session")
def train_clips(labels):
    return balanced_order(read_manifest(DEMO, labels, "train"))


@pytest.fixture(scope="session")
def processor():
    return QWEN2_AUDIO.processor(open_checkpoint("pocket-base").base)


@pytest.fixture(scope="session")
def make_training(processor, train_clips, labels, seeds):
    """Recipe -> a Training of 32 clips on the CPU; keyword arguments replace its fields."""

    def make(recipe: Recipe, **changes) -> Training:
        fields = {
            "checkpoint": open_checkpoint("pocket-base"),
            "prompts": tuple(seeds[:1]),
            "labels": labels,
            "clips": train_clips[:32],
            "validation": balanced_order(read_manifest(DEMO, labels, "dev"))[:12],
            "processor": processor,
            "plan": TrainingPlan(False, recipe.batch, False, 0.0, None),
            "machine": Machine(torch.device("cpu"), torch.float32),
        }
        return Training(recipe=recipe, **{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def adapter(make_training, tmp_path_factory):
    """Folder of an adapter that was trained for two steps."""
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    write_adapter(make_training(Recipe(epochs=1, lr=2e-3)), folder)
    return folder
