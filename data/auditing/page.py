"""The audit as one self-contained page: counts, findings, plots, spectrograms with players."""

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape

from evaluators.audio import load
from evaluators.files import shipped, write_text
from evaluators.manifest import SPLITS
from opro.results import figures

from .checks import Audit, Measures

GALLERY = 24  # clips with a player
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
        rows=_rows(audit),
        plots=_plots(audit),
        shown=[_player(m) for m in shown],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def _rows(audit: Audit) -> list[tuple[str, str, int, int]]:
    out = []
    for split in SPLITS:
        for label in sorted({c.label for c in audit.clips if c.split == split}):
            part = [c for c in audit.clips if (c.split, c.label) == (split, label)]
            out.append((split, label, len(part), len({c.source_id for c in part})))
    return out


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
    return [by_id[i] for i in list(dict.fromkeys([*named, *spread]))[:GALLERY]]


def _player(m: Measures) -> dict[str, Any]:
    wave = load(m.clip.path)
    snr = "no SNR" if m.clip.snr_db is None else f"{m.clip.snr_db:+.0f} dB"
    return {
        "id": m.clip.clip_id,
        "about": f"{m.clip.label} · {m.clip.category} · {m.clip.duration_ms:.0f} ms · {snr} ·"
        f" {m.clip.split} · {m.clip.source_id}"
        + ("" if m.voice is None else f" · voice {100 * m.voice:.0f} %"),
        "wav": figures.wav(wave),
        "image": figures.spectrogram(wave),
    }


def _plots(audit: Audit) -> list[tuple[str, str]]:
    plt = figures.pyplot()
    labels = sorted({m.clip.label for m in audit.measures})
    out = []
    figure, axis = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
    for label in labels:
        level = [20 * np.log10(m.rms + 1e-6) for m in audit.measures if m.clip.label == label]
        axis.hist(level, 40, alpha=0.6, label=label, color=COLOURS.get(label))
    axis.set_xlabel("RMS level, dBFS")
    axis.set_ylabel("clips")
    axis.legend(fontsize=7)
    out.append(("Level by label: the two should look alike", figures.png(figure)))
    if any(m.voice is not None for m in audit.measures):
        figure, axis = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
        for label in labels:
            share = [
                m.voice for m in audit.measures if m.clip.label == label and m.voice is not None
            ]
            axis.hist(share, 20, (0, 1), alpha=0.6, label=label, color=COLOURS.get(label))
        axis.set_xlabel("share of frames that Silero calls speech, noise included")
        axis.set_ylabel("clips")
        axis.legend(fontsize=7)
        out.append(("Voice activity by label", figures.png(figure)))
    durations = sorted({round(c.duration_ms) for c in audit.clips})
    snrs = sorted({round(c.snr_db / 5) * 5 for c in audit.clips if c.snr_db is not None})
    if durations and snrs:
        grid = np.zeros((len(durations), len(snrs)))
        for c in audit.clips:
            if c.snr_db is not None:
                grid[
                    durations.index(round(c.duration_ms)), snrs.index(round(c.snr_db / 5) * 5)
                ] += 1
        figure, axis = plt.subplots(figsize=(4.6, 2.6), layout="constrained")
        axis.imshow(grid, cmap="viridis", aspect="auto", vmin=0)
        axis.set_xticks(range(len(snrs)), [f"{s:+d}" for s in snrs])
        axis.set_yticks(range(len(durations)), [str(d) for d in durations])
        for (y, x), n in np.ndenumerate(grid):
            axis.text(
                x,
                y,
                f"{n:.0f}",
                ha="center",
                va="center",
                color="white" if n < grid.max() / 2 else "black",
            )
        axis.set_xlabel("SNR, dB")
        axis.set_ylabel("duration, ms")
        out.append(("Clips by duration and SNR", figures.png(figure)))
    return out
