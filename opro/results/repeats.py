"""What searches that differ in their seed alone came to: spread of their best prompts, and which won how often."""

import statistics
from collections.abc import Sequence

from evaluators.prompts import shown_text
from opro.results.sheet import Column, Sheet
from opro.results.summary import Repeat, Repeats, Spread
from opro.search.history import Trial
from opro.search.repeats import best_of, wins_of

WITHIN = 2.8  # 1.96 sqrt(2): sd of a difference of two, and 95 % of such; the repeatability limit of ISO 5725


def repeats_of(
    seeds: Sequence[int], searches: Sequence[Sequence[Trial]], heard: Sequence[float]
) -> Repeats:
    """The summary's part.

    Args:
        seeds: Of each search.
        searches: Its trials.
        heard: Score of its best prompt on the holdout.
    """
    best = map(best_of, searches)
    each = tuple(
        Repeat(
            seed=seed,
            trials=len(trials),
            prompt_id=one.prompt.prompt_id,
            text=shown_text(one.prompt.text, one.prompt.given),
            search_score=one.reward,
            score=score,
        )
        for seed, trials, one, score in zip(seeds, searches, best, heard, strict=True)
    )
    return Repeats(
        each=each,
        search=_spread([one.search_score for one in each]),
        holdout=_spread([one.score for one in each]),
        wins=wins_of(searches),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(
        mean=statistics.fmean(values),
        sd=statistics.stdev(values),
        low=min(values),
        high=max(values),
    )


def repeats_sheet(repeats: Repeats) -> Sheet:
    """A row a search."""
    columns = [
        Column("seed"),
        Column("search half"),
        Column("holdout"),
        Column("prompts", 4),
        Column("wins", 5),
        Column("best prompt", text=True),
    ]
    count = len(repeats.each)
    rows = [
        [
            str(one.seed),
            f"{100 * one.search_score:.1f}",
            f"{100 * one.score:.1f}",
            str(one.trials),
            f"{repeats.wins[one.prompt_id]} of {count}",
            one.text,
        ]
        for one in repeats.each
    ]
    title = f"{count} searches by seed, and the best prompt of each; its holdout score describes and decided nothing"
    return Sheet(title, columns, rows)


def spread_line(repeats: Repeats) -> str:
    """How far apart the searches ended, and what that means, in a sentence."""
    where = (("search half", repeats.search), ("holdout", repeats.holdout))
    apart = ", ".join(
        f"{100 * one.low:.1f} to {100 * one.high:.1f} on the {name} (sd {100 * one.sd:.1f})"
        for name, one in where
    )
    limit = WITHIN * 100 * repeats.holdout.sd
    return (
        f"the best prompts of {len(repeats.each)} seeds score {apart}: two single searches on these clips may differ by"
        f" some {limit:.1f} points on the holdout through their seed alone (95 %)"
    )


def wins_line(repeats: Repeats) -> str:
    """Which prompt won how often, in a sentence."""
    count, most = len(repeats.each), max(repeats.wins.values())
    if most == 1:
        return f"each of the {count} searches ended with another prompt"
    texts = {one.prompt_id: one.text for one in repeats.each}
    name = next(iter(repeats.wins))
    others = len(repeats.wins) - 1
    more = f", {others} other{'s' if others > 1 else ''} in the rest" if others else ""
    return f"{texts[name][:60]!r} ({name}) was best in {most} of {count} searches{more}"
