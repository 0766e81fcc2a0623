"""Segments judged against true ones: detection error rate."""

from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from evaluators.plain_data import json_lines
from opro.recordings.journal import MEND, RECORDINGS


def judge(out: Path, reference: Path, uem: Path | None) -> str:
    """A line with the detection error rate and its parts (pyannote.metrics; Bredin, Interspeech 2017).

    The error rate is false alarms and misses in seconds over the seconds of true speech.

    Args:
        out: Folder of the answers.
        reference: RTTM file. A recording goes by the name of its file without ending.
        uem: What is judged of each recording; None: all of it.
    Raises:
        UserError: pyannote.metrics is not installed, or the file has none of the recordings.
    """
    try:
        from pyannote.core import Annotation, Segment, Timeline
        from pyannote.database import util
        from pyannote.metrics.detection import DetectionErrorRate
    except ImportError:
        raise UserError(
            "--reference needs the package pyannote.metrics: pip install 'opro-audio[segments]'"
        ) from None
    read: Any = util  # without types
    try:
        truth: dict[str, Any] = read.load_rttm(str(reference))
        parts = None if uem is None else read.load_uem(str(uem))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{str(uem or reference)!r} cannot be read as RTTM or UEM ({error})"
        ) from None
    metric: Any = DetectionErrorRate()
    judged, left = 0, 0
    for _, row in json_lines(out / RECORDINGS, MEND):
        name = Path(row["file"]).stem.replace(" ", "_")
        if "segments" not in row or name not in truth:
            left += 1
            continue
        said = Annotation(uri=name)
        for i, (start, end) in enumerate(row["segments"]):
            said[Segment(start, end), i] = "speech"
        whole = Timeline([Segment(0, row["seconds"])], uri=name)
        metric(truth[name], said, uem=whole if parts is None else parts[name])
        judged += 1
    if not judged:
        raise UserError(
            f"{str(reference)!r} has none of these recordings; it names {', '.join(sorted(truth)[:4])}; expected the"
            " names of their files without ending"
        )
    whole_s = metric["total"] or 1.0
    more = f"; {left} recordings are not in it or have no segments" if left else ""
    return (
        f"detection error rate {100 * abs(metric):.1f} % of {whole_s:.1f} s of speech in {judged} recordings: missed"
        f" {100 * metric['miss'] / whole_s:.1f} %, false alarms {100 * metric['false alarm'] / whole_s:.1f} %{more}"
    )
