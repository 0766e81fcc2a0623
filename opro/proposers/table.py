"""The table of a request: every row of the history, with what a score alone hides."""

import json
import math
from collections.abc import Iterable

from evaluators.prompts import Prompt
from opro.proposers.surrogate import words_of
from opro.search.history import Trial
from opro.search.proposer import SearchView

SHOWN = 24  # rows of a table; of more the leaders, the worst, and the most telling failures
WORST, CONTRASTS = 4, 6
FAILED = 5  # prompts without a score that are named


def shown_trials(view: SearchView) -> list[Trial]:
    """The rows of a request, the lowest printed score first: models attend to the end (arXiv 2309.03409).

    Of a long search the leaders stay, the worst, and the failures that tell most: those that differ from a leader in
    the fewest words.
    """
    scored = view.scored
    if len(scored) > SHOWN:
        leaders = scored[: SHOWN - WORST - CONTRASTS]
        rest, worst = scored[len(leaders) : -WORST], scored[-WORST:]
        words = {t.number: words_of(t.prompt) for t in [*leaders, *rest]}

        def telling(trial: Trial) -> float:
            """Points lost for each share of words changed, against the leader of which it is the nearest."""
            own = words[trial.number]
            return max(
                (a.reward - trial.reward)
                / (0.05 + len(own ^ words[a.number]) / len(own | words[a.number]))
                for a in leaders
            )

        scored = [*leaders, *sorted(rest, key=telling)[-CONTRASTS:], *worst]
    return sorted(scored, key=lambda t: (round(100 * t.reward, 1), t.number))


def table(view: SearchView, trials: Iterable[Trial]) -> str:
    """One line a trial under a head, with everything that a score alone hides."""
    labels = view.clips.task.labels
    two = len(labels) == 2
    shares = ["hits", "false alarms"] if two else [f"right of {label}" for label in labels]
    head = [
        "row",
        "score",
        *shares,
        "AUROC",
        "tuned",
        "outside",
        "clips",
        f"answers ({', '.join(labels)})",
        "text",
    ]
    lines = [" | ".join(head)]
    for t in trials:
        one = t.outcome
        assert one is not None
        about, mark = one.profile, "~" if t.state == "dropped" else ""
        cells = [f"#{t.number}", f"{mark}{100 * t.reward + 0.0:.1f}"]
        if about is None:
            cells += ["-"] * (len(shares) + 2)
        else:
            hits, *others = about.recalls
            rates = [hits, 1 - others[0]] if two else [hits, *others]
            cells += [f"{100 * rate:.0f}" for rate in rates]
            auroc = "-" if math.isnan(about.auroc) else f"{about.auroc:.3f}"
            cells += [auroc, f"{100 * about.tuned:.1f}"]
        cells.append("-" if one.outside is None else f"{100 * one.outside:.0f}")
        cells += [
            str(one.n_scored),
            ", ".join("/".join(words) for _, words in t.prompt.answers),
            quoted(t.prompt),
        ]
        lines.append(" | ".join(cells))
    failed = [t for t in view.trials if t.state == "failed"]
    for t in failed[-FAILED:]:
        text = quoted(t.prompt)
        lines.append(
            f"#{t.number} could not be scored: {t.error[:120]}; {answers_in_words(t.prompt)}; {text}"
        )
    if len(failed) > FAILED:
        lines.append(f"{len(failed) - FAILED} more could not be scored.")
    return "\n".join(lines)


def quoted(prompt: Prompt) -> str:
    """A prompt's text in quotes, and behind them how the clip is given where that is not as it is."""
    given = f" (clip {prompt.given})" if prompt.given else ""
    return json.dumps(prompt.text, ensure_ascii=False) + given


def answers_in_words(prompt: Prompt) -> str:
    """Which answer stands for which class, as in ``SPEECH=A NONSPEECH=B``."""
    return " ".join(f"{label}={'/'.join(words)}" for label, words in prompt.answers)
