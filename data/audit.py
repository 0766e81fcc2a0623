"""Checks a clip set: `python -m data.audit data/demo`

Finds what makes numbers untrue: sources, uploads or equal sounds in two splits, sources a checkpoint was trained on
(--checkpoint), changed or broken files, labels that voice activity contradicts, clipping and silence, cells with one
class, and shortcuts: how well a linear model tells the classes apart from level, bandwidth and spectral tilt alone.
Prints a table and writes a page with plots, spectrograms and players (--page). Exit code 1 when something is wrong.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evaluators.errors import PauseError
from evaluators.files import check_file
from evaluators.manifest import manifest_path
from evaluators.tasks import task_named
from opro.cli import Parser, hand_over, run_verb

from .auditing.checks import Audit, audit_clips
from .auditing.page import write_page


def table(audit: Audit) -> list[str]:
    """Counts per split and label as lines of text."""
    seconds = {m.clip.clip_id: m.known.seconds for m in audit.measures}
    lines = [
        f"{'split':6} {'label':10} {'clips':>7} {'sources':>8} {'minutes':>8}  categories;"
        " level, bandwidth and tilt alone"
    ]
    shortcuts = dict(audit.shortcuts)
    for split, label, clips in audit.groups():
        minutes = sum(seconds.get(c.clip_id, 0.0) for c in clips) / 60
        categories = sorted(Counter(c.category for c in clips).items())
        line = (
            f"{split:6} {label:10} {len(clips):7,} {len({c.source_id for c in clips}):8,}"
            f" {minutes:8.1f}  {', '.join(f'{k} {n}' for k, n in categories)}"
        )
        if shortcut := shortcuts.pop(split, None):  # once a split, in the line of its first label
            mean, low, high = (100 * share for share in shortcut)
            line += f";  {mean:.1f} % [{low:.1f}, {high:.1f}]"
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("manifest", type=Path, help="manifest CSV, or the folder that holds it")
    text = "labels, separated by commas (default: %(default)s)"
    add("--labels", default="SPEECH,NONSPEECH", help=text)
    add("--task", metavar="NAME", help="task whose labels the clips have, or a task file")
    add("--checkpoint", help="also check what this checkpoint was trained on")
    text = "where to write the page (default: runs/audit-NAME.html)"
    add("--page", type=Path, help=text)
    add("--no-voice", action="store_true", help="skip voice activity")
    args = parser.parse_args(argv)

    def run() -> int:
        folder = manifest_path(args.manifest).resolve()
        name = folder.parent.name if folder.stem == "manifest" else folder.stem
        page = args.page or Path("runs") / f"audit-{name}.html"
        check_file(page, "--page")
        audit = audit_clips(
            args.manifest,
            task_named(args.task) if args.task else args.labels.split(","),
            args.checkpoint,
            not args.no_voice,
        )
        print("\n".join(table(audit)))
        print()
        for finding in sorted(audit.findings, key=lambda f: not f.fault):
            print(("FAULT  " if finding.fault else "note   ") + finding.text)
        print(f"\n{len(audit.clips):,} clips, {len(audit.faults)} faults", end="", flush=True)
        try:
            write_page(audit, page)  # last: what was found is told, whatever becomes of a picture
        except (PauseError, OSError):
            print()
            raise
        print(f"; spectrograms and players: {page}")
        found = [{"fault": f.fault, "text": f.text} for f in audit.findings]
        hand_over(
            {
                "clips": len(audit.clips),
                "faults": len(audit.faults),
                "findings": found,
                "paths": {"page": str(page)},
            }
        )
        return 1 if audit.faults else 0

    return run_verb(run)


if __name__ == "__main__":
    sys.exit(run_verb(main))
