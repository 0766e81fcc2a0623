"""How long a profile takes: python tests/bench_profile.py --shape 7b --device cuda

    python tests/bench_profile.py --wordings 170 --clips 20    the pocket checkpoint, on this machine
    python tests/bench_profile.py --coverage 200               how often its intervals hold the truth
    python tests/bench_profile.py --shape 7b --device cuda     1,000 wordings x 400 clips on the exact 7B shape with
                                                               random weights, on one GPU of 80 GB

Wordings are those of opro.profile's own sample of the grammar, clips the first of the demo's dev split (of more than it
has, of all splits and shuffled). Times all that a profile does once weights are in memory: decoding, audio tower,
prefixes, suffixes in the calls of opro.profile, statistics, page. No cache.

Coverage: log-odds that are a sum of normal parts of class, wording, source, clip, and wording with clip; 100 wordings,
60 clips of 15 sources against 80 of 40. What is true is known of wordings and clips without number.
"""

import argparse
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from scipy.special import ndtr

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.device import pick_device
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.stock import random_7b
from evaluators.audio_lm.templates import encode
from evaluators.bench import SUFFIX, many_clips
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.splits import balanced_order
from evaluators.statistics.metrics import rates
from evaluators.statistics.resampling import Statistic
from evaluators.targets import Targets
from evaluators.tasks import SPEECH_TASK
from opro.profiling.document import Heard, Setting, document
from opro.profiling.page import page_of
from opro.profiling.scoring import score, telling
from opro.profiling.two_way import QUANTILES, Answers, TwoWay, possible, summary
from opro.profiling.wordings import sample
from opro.search.lengths import length_of, unit_of

SPREADS = {"wording": 0.8, "source": 0.6, "clip": 1.0, "both": 0.5}  # standard deviations in nats


def simulated(rng: np.random.Generator) -> Answers:
    """What 100 wordings say of 140 clips."""
    source = np.concatenate([np.repeat(np.arange(15), 4), 15 + np.repeat(np.arange(40), 2)])
    truth = (source >= 15).astype(int)
    z = 1.0 - 2.0 * truth + rng.normal(0, SPREADS["wording"], (100, 1))
    z = z + rng.normal(0, SPREADS["source"], 55)[source] + rng.normal(0, SPREADS["clip"], 140)
    z = z + rng.normal(0, SPREADS["both"], (100, 140))
    names = tuple(map(str, range(140)))
    targets = Targets(("A", "B"), names, truth, source.astype(str))
    return Answers(targets, np.stack([-np.logaddexp(0, -z), -np.logaddexp(0, z)], axis=-1))


def true_numbers() -> dict[str, float]:
    """What `simulated` estimates."""
    rng, s = np.random.default_rng(0), SPREADS
    wording = rng.normal(0, s["wording"], 400_000)
    over_clips = np.sqrt(s["source"] ** 2 + s["clip"] ** 2 + s["both"] ** 2)
    hits, alarms = ndtr((1 + wording) / over_clips), ndtr((wording - 1) / over_clips)
    clip = 1 + rng.normal(0, np.hypot(s["source"], s["clip"]), 400_000)
    same = ndtr(clip / np.hypot(s["wording"], s["both"]))
    out = {"consistency": float((same**2 + (1 - same) ** 2).mean())}
    for name, value in (
        ("balanced_accuracy", (hits + 1 - alarms) / 2),
        ("bias", (hits + alarms) / 2 - 0.5),
    ):
        out |= {f"{name}_q{round(100 * q)}": float(np.quantile(value, q)) for q in QUANTILES}
        out |= {f"{name}_mean": float(value.mean()), f"{name}_sd": float(value.std())}
    return out


def coverage(times: int) -> None:
    """Prints how often intervals hold what is true."""
    truth = true_numbers()
    held, off = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0.0)
    width = dict.fromkeys(truth, 0.0)
    rows = np.arange(100)
    for i in range(times):
        answers = simulated(np.random.default_rng([1, i]))
        t = TwoWay.of(answers.targets, ["g"] * 100, resamples=500, seed=i)
        said = t.sources.balanced(answers.decided == 0)
        outcomes = {
            "balanced_accuracy": rates(t.sources, answers.decided)["balanced_accuracy"],
            "bias": Statistic(said.value - 0.5, said.draws - 0.5),
        }
        found = summary(t, answers, outcomes | {"auroc": outcomes["bias"]}, rows)
        for name, true in truth.items():
            one = t.interval(found[name], *possible(name))
            held[name] += one["low"] <= true <= one["high"]
            off[name] += one["value"] - true
            width[name] += one["high"] - one["low"]
    print("| number | true | measured less true | interval's width | holds the truth |")
    print("| --- | --- | --- | --- | --- |")
    for name, true in truth.items():
        print(
            f"| {name} | {true:.3f} | {off[name] / times:+.3f} | {width[name] / times:.3f} |"
            f" {100 * held[name] / times:.1f} % |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["pocket", "7b"], default="pocket")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--wordings", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--page", help="file to write the page to")
    parser.add_argument("--coverage", type=int, metavar="N", help="simulate so many profiles")
    args = parser.parse_args()
    if args.coverage:
        coverage(args.coverage)
        return 0
    device, checkpoint = pick_device(args.device), open_checkpoint("pocket-base")
    loaded = None
    if args.shape == "7b":
        loaded = random_7b(device)
        checkpoint = replace(checkpoint, name="7b shape, random weights")
    scorer = AudioScorer(checkpoint, str(device), loaded=loaded)
    found = balanced_order(read_manifest(shipped("data/demo"), SPEECH_TASK.labels, "dev"))
    found = found[: args.clips] if args.clips <= len(found) else many_clips(args.clips)
    clips = ClipSet(SPEECH_TASK, tuple(found))
    design = sample(SPEECH_TASK, args.wordings, 0)
    prompts = [w.prompt for w in design.wordings]
    tokens = [
        len(encode(scorer.processor.tokenizer, scorer.family.template.after(p.text)))
        for p in prompts
    ]
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"{checkpoint.name}; {name}; torch {torch.__version__}; {len(prompts)} wordings of {min(tokens)} to"
        f" {max(tokens)} suffix tokens, {np.mean(tokens):.1f} on average (evaluators.bench: {SUFFIX}),"
        f" {len(clips)} clips"
    )
    scorer.score(prompts[:2], clips[:2])  # weights and kernels; forgotten again
    scorer.forget()
    begin = time.perf_counter()
    scored = score(scorer, prompts, clips, telling(checkpoint.name, len(prompts)))
    scoring = time.perf_counter() - begin
    lengths = tuple(length_of(scorer, p) for p in prompts)
    heard = Heard("bench", scorer.fingerprint, (), scored, lengths, unit_of(scorer, prompts[0]))
    made = document(Setting(clips, design, design.wordings, 0), [heard])
    statistics = time.perf_counter() - begin - scoring
    page = page_of({**made, "judged_on": "dev"})
    if args.page:
        with open(args.page, "w", encoding="utf-8") as file:
            file.write(page)
    drawing = time.perf_counter() - begin - scoring - statistics
    evals = len(prompts) * len(clips)
    peak = (
        torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    )
    whole = scoring + statistics + drawing
    print("| evals | scoring, s | ms an eval | statistics, s | page, s | all, min | peak, GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {evals:,} | {scoring:.1f} | {1e3 * scoring / evals:.3f} | {statistics:.1f} | {drawing:.1f} |"
        f" {whole / 60:.2f} | {peak:.1f} |"
    )
    if args.shape == "7b" and evals >= 400_000:
        print(f"goal of 8 minutes for 1,000 x 400: {'met' if whole < 480 else 'missed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
