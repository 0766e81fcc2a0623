"""A metric of one's own: F1 of the first label.

opro.add_metric("f1", f1, "F1 of speech in percent")
run = opro.optimize("pocket-base", SEEDS, "data/demo", objective="f1")
"""

from evaluators.statistics.resampling import Clusters, Statistic
from evaluators.targets import Predictions


def f1(c: Clusters, said: Predictions) -> Statistic:
    """Twice the hits over hits, misses and false alarms, twice the hits counted; with all its resamples.

    `c` holds resamples of the sources: its methods turn ``[clip]`` numbers into a value and one for each resample, from
    which intervals and p come.
    """
    asked, found = c.truth == 0, said.decided == 0
    return c.ratio(2.0 * (asked & found), 1.0 * asked + 1.0 * found)
