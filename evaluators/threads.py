"""The processor's threads under torch: how they wait, how many there are, and that sums do not depend on them."""

import os
import sys

# What says how OpenMP's threads wait, and how many there are.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def wait_asleep() -> None:
    """Lets OpenMP's threads sleep until there is work, unless the environment says how they wait.

    By default they spin: they hold a core and do nothing. Where the cores are shared, the threads that have work then
    wait for those that have none, and two runs at once took ten times as long as one after the other
    (tests/bench_busy.py). OpenMP reads the environment as torch loads it, so this must come before.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def sum_alike() -> None:
    """Lets MKL sum a product in one order wherever its operands lie, unless the environment says how (``MKL_CBWR``).

    By default the order depends on where in memory they begin, which is another place for each thread: on a processor
    of AMD some scores had other last bits with two threads than with one, and with clips in another order. MKL reads
    this at its first product (Intel oneMKL developer guide, "Conditional Numerical Reproducibility").
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")


def use_threads(count: int) -> None:
    """Sets how many threads a product is computed by.

    Args:
        count: So many. 0: what the environment says, else torch's own default, but no more than a container lends.
    """
    if not count:
        if any(name in os.environ for name in COUNTS):
            return
        from joblib import cpu_count  # knows the limits of control groups, which torch does not

        count = cpu_count()
        if count >= _visible_cores():
            return  # torch knows better: it takes one for each physical core
    os.environ.update(dict.fromkeys(COUNTS, str(count)))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def _visible_cores() -> int:
    """Cores that torch sees."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
