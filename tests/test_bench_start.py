"""What the bench of starts watches is there: it names parts that are no others' affair."""

import os
import subprocess
import sys

from common import ROOT

WATCH = "from bench_start import Path, Watch, watch_scorer; watch_scorer(Watch(0.0), Path('x'), False, 'again')"


def test_all_that_it_watches_has_its_name():
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", WATCH], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
