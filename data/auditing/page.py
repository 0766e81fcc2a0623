"""One self-contained HTML page of an audit: counts, findings, plots, spectrograms with players."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape

from evaluators.audio import load
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import shipped, write_text
from opro.results import figures

from .checks import Audit, Measures

MAX_PLAYERS = 24  # clips that can be played
FIGURE = (4.6, 2.6)  # inches
COLOURS = {"SPEECH": "#2a78b8", "NONSPEECH": "#c8662b"}


def write_page(audit: Audit, path: Path) -> None:
    """Writes the page, whole or not at all."""
    env = Environment(
        loader=FileSystemLoader(shipped("data/templates")),
        autoescape=select_autoescape(default=True, default_for_string=True),
    )
    shown = _gallery(audit)
    page = env.get_template("audit.html").render(
        manifest=str(audit.manifest),
        clips=len(audit.clips),
        faults=len(audit.faults),
        findings=sorted(audit.findings, key=lambda f: not f.fault),
        rows=[
            (split, label, len(clips), len({c.source_id for c in clips}))
            for split, label, clips in audit.groups()
        ],
        plots=_plots(audit),
        shown=[_player(m) for m in shown],
    )
    write_text(path, page)


def _gallery(audit: Audit) -> list[Measures]:
    """Clips named in findings first, faults before notes, then evenly spaced ones."""
    by_id = {m.clip.clip_id: m for m in audit.measures}
    named = [
        i
        for f in sorted(audit.findings, key=lambda f: not f.fault)
        for i in f.clips[:4]
        if i in by_id
    ]
    spread = [m.clip.clip_id for m in audit.measures[:: max(1, len(audit.measures) // 12)]]
    return [by_id[i] for i in list(dict.fromkeys([*named, *spread]))[:MAX_PLAYERS]]


def _player(m: Measures) -> dict[str, Any]:
    try:
        wave = load(m.clip.path)
        sound = {"wav": figures.wav(wave), "image": figures.spectrogram(wave), "silent": ""}
    except UserError as error:  # it has gone since it was measured
        sound = {"wav": "", "image": "", "silent": str(error)}
    snr = "no SNR" if m.clip.snr_db is None else f"{m.clip.snr_db:+.0f} dB"
    return {
        "id": m.clip.clip_id,
        "about": f"{m.clip.label} · {m.clip.category} · {m.clip.duration_ms:.0f} ms · {snr} ·"
        f" {m.clip.split} · {m.clip.source_id}"
        + ("" if m.voice is None else f" · voice {100 * m.voice:.0f} %"),
        **sound,
    }


def _plots(audit: Audit) -> list[tuple[str, str]]:
    """(title, PNG in base64) of each plot."""
    level = {m: 20 * np.log10(m.known.levels.rms + 1e-6) for m in audit.measures}
    voice = {m: m.voice for m in audit.measures if m.voice is not None}
    text = "share of frames that Silero calls speech, noise included"
    out = [
        ("Level by label: the two should look alike", _histogram(level, "RMS level, dBFS", 40)),
    ]
    if voice:
        out.append(("Voice activity by label", _histogram(voice, text, 20, (0, 1))))
    if any(c.snr_db is not None for c in audit.clips):
        out.append(("Clips by duration and SNR", _grid(audit.clips)))
    return out


def _histogram(
    values: Mapping[Measures, float],
    title: str,
    bins: int,
    limits: tuple[float, float] | None = None,
) -> str:
    figure, axis = figures.pyplot().subplots(figsize=FIGURE, layout="constrained")
    for label in sorted({m.clip.label for m in values}):
        part = [value for m, value in values.items() if m.clip.label == label]
        axis.hist(part, bins, limits, alpha=0.6, label=label, color=COLOURS.get(label))
    axis.set_xlabel(title)
    axis.set_ylabel("clips")
    axis.legend(fontsize=7)
    return figures.png(figure)


def _grid(clips: Sequence[Clip]) -> str:
    """Number of clips in each cell of duration and SNR."""
    count = Counter(
        (round(c.duration_ms), round(c.snr_db / 5) * 5) for c in clips if c.snr_db is not None
    )
    durations = sorted({round(c.duration_ms) for c in clips})
    snrs = sorted({snr for _, snr in count})
    grid = np.array([[count[d, s] for s in snrs] for d in durations])
    figure, axis = figures.pyplot().subplots(figsize=FIGURE, layout="constrained")
    axis.imshow(grid, cmap="viridis", aspect="auto", vmin=0)
    axis.set_xticks(range(len(snrs)), [f"{s:+d}" for s in snrs])
    axis.set_yticks(range(len(durations)), [str(d) for d in durations])
    for (y, x), n in np.ndenumerate(grid):
        colour = "white" if n < grid.max() / 2 else "black"
        axis.text(x, y, str(n), ha="center", va="center", color=colour)
    axis.set_xlabel("SNR, dB")
    axis.set_ylabel("duration, ms")
    return figures.png(figure)
