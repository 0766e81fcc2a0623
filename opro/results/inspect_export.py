"""Results as logs of inspect_ai, for ``inspect view``: one log a prompt, one sample a clip, with its sound.

Written are the members of an ``.eval`` archive by hand, so that the package need not be installed: what
https://inspect.aisi.org.uk/eval-logs.html and `inspect_ai.log.EvalLog` ask for, and nothing more.
"""

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.audio import load
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import json_text, read_json, replacing
from evaluators.statistics import metrics
from evaluators.targets import Predictions
from evaluators.tasks import task_named
from opro.results import figures
from opro.results.logs.sample_log import digest
from opro.results.page import clips_of
from opro.results.predictions import number_or_text, read_own
from opro.results.run_folder import SUMMARY, RunFolder
from opro.settings import file_name

MATRIX = "matrix.json"
SCORER = "right"
ATTACHED = (
    "attachment://"  # what stands in messages in place of a large text, which the sample holds once
)
MOST_SOUND = (
    64 << 20
)  # bytes of sound in a log, as base64; clips beyond it are told by their path alone
LEAST = 5e-7  # half of the last digit that predictions are written with: no probability is 0


@dataclass(frozen=True)
class Evaluation:
    """One prompt or detector on the clips of a split, as a log tells it.

    Attributes:
        about: What stands in the log's metadata.
        words: Label -> what the model answers for it; of a detector empty.
        system: The system message, "" where there is none.
    """

    task: str
    model: str
    name: str
    prompt: str
    said: Predictions
    words: Mapping[str, str]
    about: Mapping[str, Any]
    system: str = ""


def write_logs(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    """Writes a log for each prompt of a finished run that was scored on the holdout, or each row of a matrix.

    Returns:
        The files, and what is to be told of them, a sentence each.
    Raises:
        UserError: The folder holds no finished run and no matrix.
    """
    notes: list[str] = []
    is_matrix = (folder / MATRIX).is_file()
    if is_matrix:
        result = read_json(folder / MATRIX)
        settings = result["provenance"]["settings"]
        task, manifest, where = (
            task_named(settings["task"]),
            settings["manifest"],
            result["judged_on"],
        )
        found = list(_of_matrix(folder, result, task.name, task.labels))
    else:
        run = RunFolder.read(folder)
        task, manifest, where = run.task, run.config["manifest"], "holdout of dev"
        found = list(_of_run(run, notes))
    clips = clips_of(manifest, task, notes)
    out.mkdir(parents=True, exist_ok=True)
    made = (folder / (MATRIX if is_matrix else SUMMARY)).stat().st_mtime
    begun = datetime.fromtimestamp(
        int(made), UTC
    )  # so that the same command writes the same files again
    files = []
    for one in found:
        name = (
            f"{begun:%Y-%m-%dT%H-%M-%S+00-00}_{file_name(one.task)}_{file_name(one.name)[:80]}.eval"
        )
        about = {"split": where, "manifest": str(manifest), **one.about}
        _write(out / name, replace(one, about=about), clips, begun, notes)
        files.append(out / name)
    return files, list(dict.fromkeys(notes))


def _of_run(run: RunFolder, notes: list[str]) -> Iterator[Evaluation]:
    summary = run.finished()
    for trial in run.ranking():
        prompt, path = trial.prompt, run.holdout(trial.prompt.prompt_id)
        if not path.is_file():
            continue
        is_chosen = prompt.prompt_id == summary.chosen.prompt_id
        is_baseline = prompt.prompt_id == summary.baseline.prompt_id
        is_finalist = prompt.prompt_id in {one.prompt_id for one in summary.finalists}
        others = (
            "finalist" if is_finalist else "first-seed"
        )  # which chosen and baseline are told against
        kind = "chosen" if is_chosen else "baseline" if is_baseline else others
        yield Evaluation(
            run.task.name,
            run.checkpoint,
            f"{kind}-{prompt.prompt_id}",
            prompt.text,
            read_own(path, run.task.labels),
            {label: words[0] for label, words in prompt.answers},
            {
                "run": run.name,
                "prompt_id": prompt.prompt_id,
                "kind": kind,
                "bias_nats": trial.classifier.bias,
                **({"presentation": prompt.given} if prompt.given else {}),
                "decision": summary.reason,
            },
            prompt.system,
        )
    if len(run.checkpoints) > 1:
        notes.append("a clip stands there once for each checkpoint of the run")


def _of_matrix(
    folder: Path, result: Mapping[str, Any], task: str, labels: Sequence[str]
) -> Iterator[Evaluation]:
    for number, row in enumerate(result["rows"], 1):
        yield Evaluation(
            task,
            row["model"],
            f"{number:02d}-{row['model']}-{row['prompt']}",
            row.get("text", row["prompt"]),
            read_own(folder / row["predictions"], labels),
            {label: words[0] for label, words in row.get("answers", {}).items()},
            {k: row.get(k) for k in ("row", "prompt", "prompt_id", "bias", "searched_on")}
            | ({"presentation": row["presentation"]} if "presentation" in row else {}),
        )


def _write(
    path: Path,
    one: Evaluation,
    clips: Mapping[str, Clip],
    begun: datetime,
    notes: list[str],
) -> None:
    """Writes the archive, whole or not at all."""
    summaries, room = [], MOST_SOUND
    with replacing(path) as fresh, zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(len(one.said.targets)):
            sample, summary = _sample(one, i)
            clip = clips.get(one.said.targets.clip_ids[i].rpartition("|")[2])
            sound = _sound(clip, room, notes)
            room -= len(sound)
            parts = sample["messages"][-2]["content"]
            if clip is not None:
                summary["metadata"] |= {"audio": str(clip.path), "sha256": clip.sha256}
                place = f"{ATTACHED}{clip.sha256}" if sound else str(clip.path)
                parts.insert(0, {"type": "audio", "audio": place, "format": "wav"})
            sample["attachments"] = {clip.sha256: sound} if clip is not None and sound else {}
            sample["metadata"] = summary["metadata"]
            sample["events"] = [_event(sample, begun)]
            archive.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
            summaries.append(summary)
        header = _header(one, begun)
        start = {k: header[k] for k in ("version", "eval", "plan")}
        archive.writestr("_journal/start.json", json.dumps(start))
        archive.writestr("summaries.json", json.dumps(summaries))
        archive.writestr("header.json", json_text(header))


def _sound(clip: Clip | None, room: int, notes: list[str]) -> str:
    """The clip as a data URL, 16 kHz mono; "" where it cannot be played, and a note."""
    if clip is None:
        notes.append("clips that are not in the manifest any more are told by their names alone")
        return ""
    try:
        found = f"data:audio/wav;base64,{figures.wav(load(clip.path))}"
    except UserError as error:
        notes.append(f"a clip is told by its path alone: {error}")
        return ""
    if len(found) > room:
        notes.append(
            f"clips beyond {MOST_SOUND >> 20} MB of sound a log are told by their paths alone"
        )
        return ""
    return found


def _sample(one: Evaluation, i: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(sample, its summary), still without the clip's sound and path."""
    said, targets = one.said, one.said.targets
    label, right = targets.labels[said.decided[i]], bool(said.right[i])
    target = targets.labels[targets.truth[i]]
    fields: dict[str, Any] = {
        "source_id": str(targets.sources[i]),
        **{name: number_or_text(values[i]) for name, values in targets.slices.items()},
    }
    if said.probability is not None and len(targets.labels) == 2:
        first = float(said.probability[i])
        for name, p in zip(targets.labels, (first, round(1 - first, 6)), strict=True):
            fields[f"p_{name}"] = p
            fields[f"logp_{name}"] = round(math.log(max(p, LEAST)), 6)
    answer = one.words.get(label, label)
    messages: list[dict[str, Any]] = []
    if one.system:
        messages.append({"role": "system", "content": one.system})
    asked = [{"type": "text", "text": one.prompt}]
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    for k, message in enumerate(messages):
        message["id"] = digest([one.name, i, k])[:22]
    score = {"value": "C" if right else "I", "answer": label}
    name = re.sub(r"[\\/]", "_", targets.clip_ids[i])  # it is a part of a member's name
    choice = {"message": messages[-1], "stop_reason": "stop"}
    shared = {"id": name, "epoch": 1, "target": target, "scores": {SCORER: score}}
    sample = {
        **shared,
        "choices": list(targets.labels),
        "input": messages[:-1],
        "messages": messages,
        "output": {"model": one.model, "choices": [choice], "completion": answer},
    }
    return sample, {**shared, "input": one.prompt, "metadata": fields, "completed": True}


def _event(sample: Mapping[str, Any], begun: datetime) -> dict[str, Any]:
    """The one call of the model, without which the viewer opens a sample on an empty page."""
    return {
        "event": "model",
        "timestamp": begun.isoformat(),
        "working_start": 0.0,
        "model": sample["output"]["model"],
        "input": sample["input"],
        "tools": [],
        "tool_choice": "none",
        "config": {},
        "output": sample["output"],
    }


def _header(one: Evaluation, begun: datetime) -> dict[str, Any]:
    """The log's header: what was evaluated, and accuracy as it stands in our tables."""
    said, created = one.said, begun.isoformat()
    ids = [digest([one.name, one.model, created, kind])[:22] for kind in ("eval", "run", "task")]
    values = {
        "accuracy": float(np.mean(said.right)),
        "balanced_accuracy": metrics.balanced_accuracy(said.targets.kinds, said.right),
    }
    count = len(said.targets)
    score = {"name": SCORER, "scorer": SCORER, "scored_samples": count, "unscored_samples": 0}
    scored = {k: {"name": k, "value": v} for k, v in values.items()}
    about = {
        "eval_id": ids[0],
        "run_id": ids[1],
        "task_id": ids[2],
        "created": created,
        "task": one.task,
        "task_args": {"prompt": one.name},
        "dataset": {"name": one.about["manifest"], "samples": count},
        "model": one.model,
        "config": {"epochs": 1},
        "metadata": dict(one.about),
    }
    return {
        "version": 2,
        "status": "success",
        "eval": about,
        "plan": {"name": "plan", "steps": []},
        "results": {
            "total_samples": count,
            "completed_samples": count,
            "scores": [{**score, "metrics": scored}],
        },
        "stats": {"started_at": created, "completed_at": created},
    }
