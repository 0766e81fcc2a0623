"""Whether an older tree gives the same scores, and how fast: python tests/bench_same.py --old DIR

    git worktree add ../old COMMIT && python tests/bench_same.py --old ../old
    python tests/bench_same.py --old ../old --shape 7b      the exact 7B shape with random weights, on one GPU of 80 GB

Both trees run in processes of their own, side by side on the same device, and take turns, so that a device that grows
warm slows both alike. Work and rows as in evaluators.bench: "all" is everything from the files on, "suffix step" the
same prompts again. 4-bit weights are tried where bitsandbytes is installed. Exit code 1 if any bit differs.
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


class Tree:
    """A process that runs one tree."""

    def __init__(self, root: Path, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", *args.passed_on]
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request):
        """The reply to a request."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("reply "):
                return json.loads(line.removeprefix("reply "))
        sys.exit(f"the process of {self.process.args} ended; see its message above")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=Path, help="a checkout of the older tree")
    parser.add_argument("--shape", choices=["pocket", "7b"], default="pocket")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    if args.old is None or not (args.old / "evaluators").is_dir():
        parser.error("--old must be a checkout, a folder that holds evaluators/")
    names = ("shape", "device", "clips", "prompts")
    args.passed_on = [a for k in names for a in (f"--{k}", str(vars(args)[k]))]
    trees = {"old": Tree(args.old.resolve(), args), "new": Tree(HERE, args)}
    for name, tree in trees.items():
        print(f"{name}: {tree.ask('where')}", file=sys.stderr)
    print(
        f"{args.shape}, {args.clips} clips x {args.prompts} prompts, {trees['new'].ask('device')}"
    )
    print("| precision | equal bits | row | old, ms | new, ms | new / old | old, GiB | new, GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    equal = True
    for case in trees["new"].ask("cases"):
        digests = [tree.ask("open", case) for tree in trees.values()]
        same = digests[0] == digests[1]
        equal = equal and same
        peaks = [tree.ask("peak") for tree in trees.values()]
        for row in ("all", "suffix step"):
            seconds = {name: [] for name in trees}
            for turn in range(args.rounds):
                for name in sorted(trees, reverse=turn % 2 == 0):
                    seconds[name].append(trees[name].ask("time", row))
            old, new = (1e3 * statistics.median(seconds[name]) for name in ("old", "new"))
            print(
                f"| {case} | {'yes' if same else 'NO'} | {row} | {old:.4f} | {new:.4f} |"
                f" {new / old:.3f} | {peaks[0]:.2f} | {peaks[1]:.2f} |",
                flush=True,
            )
        if not same:
            print(f"differing: {[k for k in digests[0] if digests[0][k] != digests[1].get(k)]}")
    return 0 if equal else 1


def work(args: argparse.Namespace) -> int:
    """Answers requests with what the tree in PYTHONPATH does."""
    worker = Worker(args)
    for line in sys.stdin:
        name, *rest = json.loads(line)
        print("reply " + json.dumps(getattr(worker, name)(*rest)), flush=True)
    return 0


def found(name: str, *modules: str):
    """A function or value, wherever this tree has it."""
    for module in modules:
        if importlib.util.find_spec(module) is not None:
            loaded = importlib.import_module(module)
            if hasattr(loaded, name):
                return getattr(loaded, name)
    sys.exit(f"no {name} in {modules}")


class Worker:
    """One tree: its scorer, whatever it is called there."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        import evaluators.audio_lm.scorer as module
        from evaluators import bench
        from evaluators.audio_lm.checkpoint import open_checkpoint

        self.torch, self.args, self.file = torch, args, module.__file__
        self.new = hasattr(module, "AudioScorer")
        self.kind = module.AudioScorer if self.new else module.QwenAudio
        places = ("evaluators.audio_lm.device", "evaluators.audio_lm.loading")
        self.on = found("pick_device", *places)(args.device)
        self.checkpoint = open_checkpoint("pocket-base")
        read_manifest = found("read_manifest", "evaluators.manifest", "evaluators.clips")
        balanced_order = found("balanced_order", "evaluators.splits", "evaluators.clips")
        task = found("SPEECH_TASK", "evaluators.tasks", "evaluators.prompts")
        self.clips = balanced_order(read_manifest(bench.DEMO, task.labels, "dev"))
        self.clips = self.clips[: args.clips]
        self.loaded = None
        if args.shape == "7b":
            make, self.to_nf4 = self._makers()
            self.loaded = make(self.on)
        tokenizer = self.loaded[1].tokenizer if self.loaded else self._scorer().processor.tokenizer
        self.prompts = bench.prompts_of_length(tokenizer, args.prompts, bench.SUFFIX)

    def where(self) -> str:
        return self.file

    def device(self) -> str:
        if self.on.type == "cuda":
            return f"{self.torch.cuda.get_device_name(self.on)}, torch {self.torch.__version__}"
        return f"{self.torch.get_num_threads()} CPU threads, torch {self.torch.__version__}"

    def cases(self) -> list[str]:
        if self.args.shape == "pocket":
            return ["float32", "bfloat16"]
        four_bits = importlib.util.find_spec("bitsandbytes") is not None
        return ["bfloat16", *(["nf4 kept", "nf4 dequantized"] if four_bits else [])]

    def open(self, case: str) -> dict[str, str]:
        """Makes the scorer of a case; digests of its scores in several calls."""
        self.scorer = None
        if self.on.type == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats(self.on)
        if case.startswith("nf4"):
            name = "quantization" if self.new else "quantisation"
            if getattr(self.checkpoint, name) == "none":
                self.to_nf4(self.loaded[0].model)
                self.checkpoint = replace(self.checkpoint, **{name: "nf4"})
            option = "dequantize" if self.new else "dequantise"
            self.scorer = self._scorer("bfloat16", **{option: case == "nf4 dequantized"})
        else:
            self.scorer = self._scorer(case)
        return self._digests()

    def peak(self) -> float:
        if self.on.type != "cuda":
            return float("nan")
        return self.torch.cuda.max_memory_allocated(self.on) / 2**30

    def time(self, row: str) -> float:
        """Seconds an eval."""
        if row == "all":
            self.scorer.forget()
        self._wait()
        begin = time.perf_counter()
        self.scorer.score(self.prompts, self.clips)
        self._wait()
        return (time.perf_counter() - begin) / (len(self.prompts) * len(self.clips))

    def _digests(self) -> dict[str, str]:
        prompts, clips = self.prompts, self.clips
        silent = [replace(c, audio="silence") for c in clips[:8]]
        calls = {
            "whole": (prompts, clips),
            "again": (prompts, clips),
            "backwards": (prompts[::-1], clips[::-1]),
            "few": (prompts[:3], clips[5:45:2]),
            "silence": (prompts, silent),
            "one": (prompts[1:2], clips[3:4]),
        }
        out = {}
        for name, (ps, cs) in calls.items():
            if name != "again":
                self.scorer.forget()
            table = self.scorer.score(ps, cs)
            raw = table.logp.tobytes() + table.logp_top.tobytes()
            out[name] = hashlib.sha256(raw).hexdigest()
        return out | {"fingerprint": self.scorer.fingerprint}

    def _scorer(self, dtype: str = "auto", **options):
        return self.kind(self.checkpoint, str(self.on), dtype, loaded=self.loaded, **options)

    def _makers(self):
        if self.new:
            from evaluators.audio_lm.stock import random_7b, to_nf4

            return random_7b, to_nf4
        from evaluators.bench import build_7b, to_nf4

        return build_7b, to_nf4

    def _wait(self) -> None:
        if self.on.type == "cuda":
            self.torch.cuda.synchronize(self.on)


if __name__ == "__main__":
    sys.exit(main())
