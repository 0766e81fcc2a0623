"""Scores, predictions and their comparison as pandas frames, for notebooks and scripts."""

import warnings
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.classifier import Classifier, read_classifiers
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator, ScoreTable
from evaluators.files import resolve
from evaluators.manifest import manifest_digest, verify
from evaluators.prompts import Prompt, prompt_from
from evaluators.statistics.compare import compare_pairs
from evaluators.targets import SLICES, Predictions
from evaluators.tasks import task_named
from opro.problem import open_data, open_evaluator
from opro.results.looks import look_id, record_use
from opro.results.predictions import joined, read_frame
from opro.results.result import pandas
from opro.settings import DataSettings

if TYPE_CHECKING:
    import pandas as pd

Asked = str | Prompt | Classifier
RESAMPLES = 10_000  # as opro.stats
UNANSWERED = 0.5  # probability outside all answers, from which on it is said


def load_clips(manifest: str | Path, split: str = "dev", *, task: str = "speech") -> ClipSet:
    """The clips of a split of a manifest, in balanced order.

    Args:
        manifest: CSV file, or the folder that holds manifest.csv.
        split: train, dev or test. Each classifier that `score` is asked for on test clips is counted as a use.
    Raises:
        UserError: It cannot be read, or has no such split.
    """
    return open_data(DataSettings(task, Path(manifest))).split(split)


def load_prompts(path: str | Path, *, task: str = "speech") -> list[Classifier]:
    """Prompts of a prompt file, with their thresholds where they have them, as a run's best.yaml.

    Raises:
        UserError: It is no prompt file.
    """
    return read_classifiers(resolve(Path(path)), task_named(task).labels)


def prompt_path(given: object) -> Path | None:
    """The prompt file that was named, if one was: a path, or a text that ends with .yaml or .yml."""
    if isinstance(given, str) and given.endswith((".yaml", ".yml")):
        return Path(given)
    return given if isinstance(given, Path) else None


def classifiers_of(
    given: "Asked | Path | Sequence[Asked]", labels: Sequence[str]
) -> list[Classifier]:
    """Classifiers from objects, from texts whose answers are A, B, ... in the order of the labels, or from a file.

    A single text is a prompt; the name of a file ends with .yaml or .yml.

    >>> classifiers_of("Speech? A) yes B) no", ["SPEECH", "NONSPEECH"])[0].prompt.answers
    (('SPEECH', ('A',)), ('NONSPEECH', ('B',)))

    Raises:
        UserError: A text is no prompt, a prompt stands twice, or there is none.
    """
    path = prompt_path(given)
    if path is not None:
        return read_classifiers(resolve(path), labels)
    assert not isinstance(given, Path)
    items = [given] if isinstance(given, str | Prompt | Classifier) else given
    if not isinstance(items, Sequence):
        raise UserError(
            f"prompts are a {type(given).__name__}; expected texts, prompts, classifiers, or a prompt file"
        )
    out = []
    for number, one in enumerate(items, 1):
        if isinstance(one, str):
            one = prompt_from({"text": one}, labels, f"prompt {number}")
        found = Classifier(one) if isinstance(one, Prompt) else one
        if not isinstance(found, Classifier):
            raise UserError(
                f"prompt {number} is a {type(one).__name__}; expected a text, a prompt or a classifier"
            )
        if [label for label, _ in found.prompt.answers] != list(labels):
            raise UserError(
                f"prompt {number} answers {', '.join(label for label, _ in found.prompt.answers)}; expected the"
                f" clips' labels {', '.join(labels)}, in this order"
            )
        out.append(found)
    if not out:
        raise UserError("no prompt was given; expected at least one")
    if len({c.prompt.digest for c in out}) < len(out):
        raise UserError("a prompt was given twice; remove one of them")
    return out


def score(
    evaluator: Evaluator | str | Path,
    prompts: "Asked | Path | Sequence[Asked]",
    clips: ClipSet,
    *,
    runs_dir: str | Path = "runs",
) -> "pd.DataFrame":
    """Scores prompts on clips: a row a prompt and clip.

    Columns: prompt_id, clip_id, source_id, label, predicted (with the classifier's threshold), score (probability of
    the first label), log_odds in nats with the threshold in, logp_LABEL in nats over the whole vocabulary, outside
    (probability that goes to no answer), and what clips are sliced by.

    Args:
        evaluator: Name, folder or hub id of a checkpoint, whose scores are kept under `runs_dir`; or an `Evaluator`.
        prompts: Texts, `Prompt` or `Classifier` objects, or a prompt file.
        runs_dir: Uses of the test split are counted here.
    Raises:
        UserError: A prompt cannot be scored, or a clip cannot be read.
    """
    if not isinstance(clips, ClipSet):
        raise UserError(
            f"clips is a {type(clips).__name__}; expected a ClipSet, as opro.load_clips gives it"
        )
    classifiers = classifiers_of(prompts, clips.task.labels)
    _, opened, _ = open_evaluator(evaluator, Path(runs_dir))
    verify(clips)
    if clips.manifest is not None and any(c.split == "test" for c in clips):
        shows = [look_id("score", opened.fingerprint, c) for c in classifiers]
        about = f"from Python, {len(classifiers)} prompts"
        record_use(Path(runs_dir), manifest_digest(clips.manifest), "score", about, shows)
    table = opened.score([c.prompt for c in classifiers], clips)
    for classifier in classifiers:
        outside = float(table.outside[table.prompts.index(classifier.prompt)].mean())
        if outside > UNANSWERED:
            words = ", ".join(f"{label} = {own[0]}" for label, own in classifier.prompt.answers)
            warnings.warn(
                f"prompt {classifier.prompt_id}: {100 * outside:.0f} % of the probability goes to no answer; it is read"
                f" by {words}, which the text should offer",
                stacklevel=2,
            )
    return frame_of(table, classifiers)


def frame_of(table: ScoreTable, classifiers: Sequence[Classifier]) -> "pd.DataFrame":
    """What classifiers say of the clips of a score table; see `score`."""
    pd = pandas()
    targets, parts = table.targets, []
    names = np.array(targets.labels, dtype=object)
    for classifier in classifiers:
        said = table.predict(classifier)
        row = table.prompts.index(classifier.prompt)
        logp = table.logp[row]
        columns: dict[str, Any] = {
            "prompt_id": classifier.prompt_id,
            "clip_id": list(targets.clip_ids),
            "source_id": targets.sources,
            "label": names[targets.truth],
            "predicted": names[said.decided],
            "score": said.probability,
            "log_odds": classifier.log_odds(logp),
            **{f"logp_{label}": logp[:, k] for k, label in enumerate(targets.labels)},
            "outside": np.clip(table.outside[row], 0.0, 1.0),
        }
        columns |= {name: list(map(attrgetter(name), table.clips)) for name in SLICES}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def compare(
    said: "Mapping[str, pd.DataFrame | str | Path]",
    metric: str = "balanced_accuracy",
    *,
    positive: str = "SPEECH",
    seed: int = 0,
) -> "pd.DataFrame":
    """Which of several predictions of the same clips is better: a row a pair, with what ``opro.stats`` tells.

    Columns: a, b, difference (a - b), its 95 % interval over sources, two-sided p, p corrected by Holm over the pairs,
    and the smallest difference that such clips would mostly show.

    Args:
        said: Name -> frame with columns clip_id, source_id, label and predicted, score or logp_LABEL (of `score`,
            `Result.holdout` or anywhere else), or a CSV file of such. Of several prompts in one frame each is named by
            its own rows: ``{i: rows for i, rows in frame.groupby("prompt_id")}``.
        metric: balanced_accuracy, accuracy, auroc, nll, worst_slice, or one of `opro.add_metric`.
        positive: The label that is to be detected.
        seed: Of the resamples.
    Raises:
        UserError: They do not hold the same clips, or a column is missing; names it.
    """
    if not isinstance(said, Mapping):
        raise UserError(
            f"compare was given a {type(said).__name__}; expected name -> data frame or file, as"
            " dict(list(found.groupby('prompt_id')))"
        )
    if len(said) < 2:
        raise UserError(f"compare was given {len(said)} predictions; expected at least two")
    read: list[Predictions] = [read_frame(name, one, positive) for name, one in said.items()]
    same = [read[0], *(joined(read[0], other) for other in read[1:])]
    return pandas().DataFrame(compare_pairs(same, metric=metric, resamples=RESAMPLES, seed=seed))
