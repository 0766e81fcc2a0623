"""What many tests need: where the project lies, and the labels of its task."""

from pathlib import Path

from evaluators.tasks import SPEECH_TASK

LABELS = SPEECH_TASK.labels
ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "data" / "demo"
