"""How fast recordings are labelled, and in how much memory: python tests/bench_predict.py --minutes 10 60

Recordings of several lengths are made of the demo's test clips, with stretches of speech in them, and labelled in
windows of --window-ms. Printed: windows a second, times real time, and the most memory held, which must not grow with
the length. --shape 7b takes the exact 7B shape with random weights, on a GPU; its answers mean nothing, so only the
pocket's are judged (detection error rate, with pyannote.metrics installed).
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from evaluators.audio import RATE, load
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.stock import random_7b
from evaluators.classifier import read_classifiers
from evaluators.errors import UserError
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.tasks import SPEECH_TASK
from opro import predict
from opro.recordings.answers import Answers
from opro.recordings.journal import Journal
from opro.recordings.reference import judge
from opro.recordings.segments import Merging
from opro.recordings.windows import Cut


def write_recording(path, minutes, seed=0):
    """A recording of the test clips, in runs of one class of a few seconds each, and the true segments as RTTM."""
    clips = read_manifest(shipped("data/demo"), SPEECH_TASK.labels, "test")
    waves = {
        label: [load(c.path) for c in clips if c.label == label] for label in SPEECH_TASK.labels
    }
    rng = np.random.default_rng(seed)
    lines, at = [], 0
    with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_16") as file:
        while at < minutes * 60 * RATE:
            for label in SPEECH_TASK.labels:
                start, until = at, at + int(rng.uniform(2, 8) * RATE)
                while at < until:
                    wave = waves[label][rng.integers(len(waves[label]))]
                    file.write(wave)
                    at += len(wave)
                if label == "SPEECH":
                    lines.append(
                        f"SPEAKER {path.stem} 1 {start / RATE:.3f} {(at - start) / RATE:.3f}"
                        " <NA> <NA> speech <NA> <NA>\n"
                    )
    path.with_suffix(".rttm").write_text("".join(lines))
    return at / RATE


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["pocket", "7b"], default="pocket")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 10, 60])
    parser.add_argument("--window-ms", type=int, default=1000)
    parser.add_argument("--hop-ms", type=int, default=500)
    parser.add_argument(
        "--prompts", type=Path, default=shipped("prompts/heldout.yaml"), help="the last is used"
    )
    args = parser.parse_args()
    checkpoint = open_checkpoint("pocket-base")
    evaluator = AudioScorer(checkpoint, args.device)
    if args.shape == "7b":
        loaded = random_7b(evaluator.device)
        evaluator = AudioScorer(checkpoint, args.device, loaded=loaded)
    classifier = read_classifiers(args.prompts, SPEECH_TASK.labels)[-1]
    print("| audio | windows | windows a second | times real time | host memory, at most |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        judged = ""
        for minutes in args.minutes:
            path = Path(folder) / f"r{minutes:g}.wav"
            seconds = write_recording(path, minutes)
            out = Path(folder) / f"out{minutes:g}"
            cut = Cut.of_ms(args.window_ms, args.hop_ms)
            labelling = predict.Labelling(
                Answers(SPEECH_TASK.labels, classifier),
                evaluator,
                cut,
                Merging(gap_s=0.5, shortest_s=0.5),
                gate=False,
                journal=Journal.open(out, {}),
            )
            if minutes == args.minutes[0]:  # loading and first use are not counted
                evaluator.score(
                    [classifier.prompt],
                    read_manifest(shipped("data/demo"), SPEECH_TASK.labels)[:64],
                )
            begin = time.perf_counter()
            predict._label(labelling, [path], {str(path): seconds})
            took = time.perf_counter() - begin
            count = cut.count(round(seconds * RATE))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"| {seconds / 60:.1f} min | {count:,} | {count / took:,.0f} | {seconds / took:,.0f} |"
                f" {peak:.2f} GiB |",
                flush=True,
            )
            try:
                judged = judge(out, path.with_suffix(".rttm"), None)
            except UserError as error:
                judged = str(error)
    if args.shape == "pocket":
        print(f"\nof the last: {judged}")


if __name__ == "__main__":
    main()
