"""What a slow language model costs a search: python tests/bench_slow_model.py

The default search on pocket-base with the rewriter alone, and beside a language model that takes so many seconds a
call. Seconds of the whole run, of proposing, and the calls; each in a folder of its own, so that nothing is cached.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

from bench_author import Author
from chat_server import serve

from opro import optimize


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    author = Author(0, True)

    def slow(request):
        time.sleep(args.seconds)
        return author(request)

    print(
        "| proposer | seconds | of them proposing | calls | evals | times |\n| --- | --- | --- | --- | --- | --- |"
    )
    first = None
    with serve(slow) as server, tempfile.TemporaryDirectory() as folder:
        for name in ("rewriter", "auto"):
            flags = ["--proposer", name, "--name", name, "--runs-dir", str(Path(folder) / name)]
            if name == "auto":
                flags += ["--lm-model", "slow", "--lm-base-url", server.url]
            begin = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                optimize.main(flags)
            seconds = time.perf_counter() - begin
            first = first or seconds
            summary = json.loads((Path(folder) / name / name / "summary.json").read_text())
            print(
                f"| {name} | {seconds:.1f} | {summary['seconds']['proposing']:.1f} | {summary['lm']['calls']} |"
                f" {summary['evals']['requested']:,} | {seconds / first:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
