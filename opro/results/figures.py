"""Pictures and sound for pages that stand alone: SVG that follows the page's colours, spectrograms, players."""

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile

from evaluators.audio import RATE, Wave
from evaluators.statistics.describe import AXES
from evaluators.statistics.psychometrics import Psychometric
from opro.search.lengths import front

INK = "#010203"  # becomes the page's text colour
COLOURS = ("#2a78b8", "#d1661f", "#3a9a5f", "#a05bb5", "#b8902a", "#c23b5a", "#5b7f95")


def pyplot() -> Any:
    """matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def axes(width: float = 6.0, height: float = 3.2) -> tuple[Any, Any]:
    """(figure, axis) in the page's ink on nothing."""
    plt = pyplot()
    style = {name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor")}
    style |= {"xtick.color": INK, "ytick.color": INK, "axes.titlecolor": INK}
    more: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "opro",
        "font.family": "sans-serif",
    }
    more |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    plt.rcParams.update(style | more)
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axis.patch.set_alpha(0)
    return figure, axis


def svg(figure: Any) -> str:
    """The figure as an SVG element to stand in a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot().close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    return re.sub(r'width="[0-9.]+pt" height="[0-9.]+pt"', "", text, count=1)


def plain(label: str) -> str:
    """A label as it is: matplotlib reads dollars as mathematics and hides what begins with an underscore."""
    return " " * label.startswith("_") + label.replace("$", r"\$")


def png(figure: Any) -> str:
    """The figure as PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    pyplot().close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def spectrogram(wave: Wave) -> str:
    """PNG in base64; that of silence is empty."""
    plt = pyplot()
    plt.rcParams.update(plt.rcParamsDefault)
    figure, axis = plt.subplots(figsize=(3.2, 1.6), layout="constrained")
    padded = np.pad(wave, (0, max(0, 257 - len(wave)))) + 1e-6
    with np.errstate(divide="ignore"):  # decibels of nothing
        *_, image = axis.specgram(padded, NFFT=256, Fs=RATE / 1000, noverlap=192, cmap="magma")
    loudest = image.get_clim()[1]
    image.set_clim(-90, loudest if loudest > -89 else -89)
    axis.set_xlabel("ms", fontsize=7)
    axis.set_ylabel("kHz", fontsize=7)
    axis.tick_params(labelsize=7)
    return png(figure)


def wav(wave: Wave) -> str:
    """16-bit WAV in base64."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode()


def legend(figure: Any) -> None:
    """What the marks mean, above the axes, so that it covers no point."""
    names = [text for axis in figure.axes for text in axis.get_legend_handles_labels()[1]]
    if names:
        columns = 1 if max(map(len, names)) > 30 else min(4, len(names))
        figure.legend(loc="outside upper left", ncols=columns, fontsize=7, frameon=False)


def limits(runs: Sequence[Sequence[dict[str, Any]]]) -> tuple[float, float] | None:
    """The range in percent that the histories of several runs share, None where nothing was scored."""
    kept = [r for rows in runs for r in rows if r["score"] is not None]
    ends = [100 * r[k] for r in kept for k in ("score", "low", "high") if r[k] is not None]
    if not ends:
        return None
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def history(
    rows: Sequence[dict[str, Any]],
    baseline: float | None,
    scores: str = "balanced accuracy",
    shared: tuple[float, float] | None = None,
) -> str:
    """Score of each trial with its interval, the best so far, the baseline.

    Args:
        rows: number, score, low, high, state of each trial.
        shared: Range of the scores, where several pictures have one.
    """
    figure, axis = axes(7.0, 3.2)
    best = -np.inf
    steps: list[tuple[int, float]] = []
    for state, colour, label, mark in (
        ("complete", COLOURS[0], "all clips", "o"),
        ("dropped", "#999999", "dropped early, forecast", "x"),
    ):
        some = [r for r in rows if r["state"] == state and r["score"] is not None]
        if some:
            x, y = [r["number"] for r in some], np.array([100 * r["score"] for r in some])
            low = y - [100 * (r["score"] if r["low"] is None else r["low"]) for r in some]
            high = [100 * (r["score"] if r["high"] is None else r["high"]) for r in some] - y
            spread = np.abs(np.stack([low, high])) if state == "complete" else None
            axis.errorbar(
                x, y, spread, fmt=mark, ms=4, color=colour, elinewidth=0.7, alpha=0.9, label=label
            )
    for r in rows:
        if r["state"] == "complete" and r["score"] is not None and r["score"] > best:
            best = r["score"]
            steps.append((r["number"], 100 * best))
    if steps:
        steps.append((rows[-1]["number"], steps[-1][1]))
        axis.step(
            *zip(*steps, strict=True), where="post", color=COLOURS[0], lw=1, label="best so far"
        )
    if baseline is not None:
        axis.axhline(100 * baseline, color=INK, lw=0.8, ls="--", label="baseline")
    axis.set_xlabel("trial")
    axis.set_ylabel(scores if "nats" in scores else f"{scores}, %")
    if shared is not None:
        axis.set_ylim(*shared)
    legend(figure)
    return svg(figure)


def lengths(rows: Sequence[dict[str, Any]], unit: str, scores: str = "balanced accuracy") -> str:
    """Score over length of the trials that were scored on all clips, with the front that nothing beats in both.

    Args:
        rows: length, score, mark ("baseline", "chosen" or "") of each, scores as shares.
        unit: Of the lengths.
    """
    figure, axis = axes(7.0, 3.2)
    axis.xaxis.get_major_locator().set_params(integer=True)
    x, y = [r["length"] for r in rows], [100 * r["score"] for r in rows]
    axis.plot(x, y, "o", ms=4, color="#999999", label="scored on all clips")
    steps = front(list(zip(x, y, strict=True)))
    if steps:
        right = [*(x[i] for i in steps), max(x)]
        axis.step(
            right, [*(y[i] for i in steps), y[steps[-1]]], where="post", color=COLOURS[0], lw=1
        )
        axis.plot([x[i] for i in steps], [y[i] for i in steps], "o", ms=5, color=COLOURS[0],
                  label="front: none is as short and scores higher")  # fmt: skip
    for name, colour, mark in (("baseline", INK, "s"), ("chosen", COLOURS[1], "D")):
        some = [i for i, r in enumerate(rows) if r["mark"] == name]
        axis.plot([x[i] for i in some], [y[i] for i in some], mark, ms=8, mfc="none", color=colour,
                  label=name if some else None)  # fmt: skip
    axis.set_xlabel(f"{unit} of system message and text")
    axis.set_ylabel(scores if "nats" in scores else f"{scores}, %")
    legend(figure)
    return svg(figure)


def data_curve(rows: Sequence[dict[str, Any]], scores: str = "balanced accuracy") -> str:
    """Score over the clips that were trained on, of the hand-written and the searched prompt; sizes stand evenly.

    Args:
        rows: clips; hand and searched, each with value, low, high as shares.
    """
    figure, axis = axes(7.0, 3.4)
    scale = 1 if "nats" in scores else 100
    for shift, (name, label), colour, mark in (
        (-0.05, ("hand", "best hand-written prompt"), COLOURS[1], "s"),
        (0.05, ("searched", "searched prompt"), COLOURS[0], "o"),
    ):
        x = np.arange(len(rows)) + shift
        value = scale * np.array([r[name]["value"] for r in rows], dtype=np.float64)
        bounds = [
            [r[name]["value"] if r[name][k] is None else r[name][k] for r in rows]
            for k in ("low", "high")
        ]
        spread = np.abs(scale * np.array(bounds, dtype=np.float64) - value)
        axis.errorbar(x, value, spread, fmt=f"{mark}-", ms=5, color=colour, elinewidth=1, lw=1.2,
                      label=label)  # fmt: skip
    axis.set_xticks(range(len(rows)), [f"{r['clips']:,}" for r in rows])
    axis.set_xlabel("train clips")
    axis.set_ylabel(scores if "nats" in scores else f"{scores}, %")
    legend(figure)
    return svg(figure)


def brittle(
    rows: Sequence[tuple[str, float, float, Sequence[float]]], scores: str = "balanced accuracy"
) -> str:
    """What trivial edits leave of each prompt's score.

    Args:
        rows: (name, score as it is, what nine of ten edits reach, score of each edit), scores as shares.
    """
    figure, axis = axes(7.0, 0.9 + 0.5 * len(rows))
    for at, (_, own, floor, edited) in enumerate(rows):
        first = at == 0
        # Side by side within a row, in their order, so that equal ones are seen.
        y = -at + 0.3 * (np.arange(len(edited)) % 7 - 3) / 6
        axis.plot(100 * np.array(edited), y, "o", ms=3, color=COLOURS[0], alpha=0.5,
                  label="with a trivial edit" if first else None)  # fmt: skip
        axis.plot([100 * floor] * 2, [-at - 0.3, -at + 0.3], color=INK, lw=1.2,
                  label="nine of ten edits reach" if first else None)  # fmt: skip
        axis.plot([100 * own], [-at], "D", ms=6, mfc="none", color=COLOURS[1],
                  label="as it is" if first else None)  # fmt: skip
    axis.set_yticks(-np.arange(len(rows)), [plain(row[0]) for row in rows])
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    axis.set_xlabel(scores if "nats" in scores else f"{scores}, %")
    legend(figure)
    return svg(figure)


def psychometric(name: str, curves: Sequence[tuple[str, Psychometric]]) -> str:
    """Hit rates over a property with their bands and false-alarm rates."""
    figure, axis = axes(6.0, 3.2)
    unit = AXES[name][1]
    for (label, p), colour in zip(curves, COLOURS, strict=False):
        low, high = p.levels[0], p.levels[-1]
        x = np.geomspace(low, high, 80) if unit == "ms" else np.linspace(low, high, 80)
        axis.fill_between(x, *(100 * b for b in p.band(x)), color=colour, alpha=0.15, lw=0)
        axis.plot(x, 100 * p.curve.hit_rate(p.axis(x)), color=colour, label=plain(label))
        axis.plot(p.levels, 100 * p.hits / p.trials, "o", ms=4, color=colour)
        axis.axhline(100 * float(p.curve.guess), color=colour, lw=0.8, ls=":")
    if unit == "ms":
        axis.set_xscale("log")
        levels = curves[0][1].levels
        shown = levels if len(levels) <= 12 else np.geomspace(levels[0], levels[-1], 5).round()
        axis.set_xticks(shown, [f"{v:.0f}" for v in shown])
        axis.minorticks_off()
    axis.set_xlabel(f"{'duration' if unit == 'ms' else 'SNR'}, {unit}")
    axis.set_ylabel("answered speech, %")
    axis.set_ylim(0, 103)
    legend(figure)
    return svg(figure)


def reliability(series: Sequence[tuple[str, Sequence[dict[str, float]]]]) -> str:
    """Share right over confidence; the size of a point is its number of clips."""
    figure, axis = axes(4.2, 3.6)
    axis.plot([50, 100], [50, 100], color=INK, lw=0.8, ls="--")
    for (label, rows), colour in zip(series, COLOURS, strict=False):
        x = [100 * r["confidence"] for r in rows]
        y = [100 * r["right"] for r in rows]
        axis.plot(x, y, color=colour, lw=1, label=plain(label))
        axis.scatter(
            x, y, [6 + 60 * r["clips"] / sum(r["clips"] for r in rows) for r in rows], colour
        )
    axis.set_xlabel("confidence in the answer, %")
    axis.set_ylabel("right, %")
    axis.set_xlim(48, 102)  # the same in all pictures, so that they can be compared
    axis.set_ylim(-4, 104)
    legend(figure)
    return svg(figure)


def forest(rows: Sequence[tuple[str, float, float, float]], reference: float) -> str:
    """(name, value, low, high), the name above its line, for a phone is narrow; the dashed line is the reference."""
    figure, axis = axes(5.0, 0.6 + 0.4 * len(rows))
    y = -np.arange(len(rows))
    value, low, high = (100 * np.array([r[k] for r in rows], dtype=np.float64) for k in (1, 2, 3))
    axis.errorbar(
        value,
        y,
        xerr=np.abs([value - low, high - value]),
        fmt="o",
        ms=4,
        color=COLOURS[0],
        elinewidth=1,
    )
    axis.axvline(100 * reference, color=INK, lw=0.8, ls="--")
    axis.set_yticks([])
    axis.set_ylim(-len(rows) + 0.4, 0.8)
    for at, row in zip(y, rows, strict=True):
        axis.text(0.02, at + 0.25, plain(row[0]), transform=axis.get_yaxis_transform(), size=8)
    axis.set_xlabel("balanced accuracy, %")
    return svg(figure)
