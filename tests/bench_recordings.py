"""Troubles that people had with recordings, and what is seen of them: python tests/bench_recordings.py

Each row makes a small input with one trouble of a public thread and prints what a user reads, with the exit code. Run
by hand; tests/data, tests/evaluators and tests/opro hold each of them as a test.
"""

import contextlib
import csv
import hashlib
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "data")]
from small_recordings import RECIPE, make_recordings, rows_of, write_clip_set  # noqa: E402

from data import audit, build  # noqa: E402
from evaluators.audio import RATE, load, read_header  # noqa: E402
from opro import doctor, finetune, optimize, report  # noqa: E402
from opro.cli import run_verb  # noqa: E402

NFC, NFD = "J\u00fcrgen", "Ju\u0308rgen"
NOISE = (0.018 * np.random.default_rng(0).standard_normal(RATE)).astype("float32")


def run(main: Callable[[Sequence[str]], int], *argv: object) -> tuple[int, str]:
    """(exit code, all that was printed) of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_verb(lambda: main([str(a) for a in argv]))
    return code, out.getvalue()


def show(row: str, what: str, said: tuple[int, str], *words: str) -> None:
    """Prints the lines that hold one of the words."""
    lines = [line.strip() for line in said[1].splitlines() if any(w in line for w in words)]
    print(f"{row:>3}  {what} (exit {said[0]})")
    for line in list(dict.fromkeys(lines))[:4] or ["NOTHING OF IT IS SAID"]:
        print(f"       {line[:420]}")


def damaged(form: str, wave: np.ndarray) -> bytes:
    """A FLAC of unknown length, or a WAV whose size is 0."""
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format=form)
    raw = bytearray(out.getvalue())
    if form == "FLAC":
        raw[21] &= 0xF0
        raw[22:26] = bytes(4)
    else:
        place = raw.index(b"data") + 4
        raw[place : place + 4] = bytes(4)
    return bytes(raw)


def change_set(folder: Path, change: Callable[[list[dict[str, str]]], None]) -> Path:
    """Changes rows or files of a clip set; the digests are those of the files then."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    for row in rows:
        if (folder / row["path"]).is_file():
            row["sha256"] = hashlib.sha256((folder / row["path"]).read_bytes()).hexdigest()
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def every(folder: Path, spoil: Callable[[Path], None]) -> Path:
    """Spoils every clip of a set."""
    return change_set(folder, lambda rows: [spoil(folder / row["path"]) for row in rows] and None)


def fresh(scratch: Path, name: str) -> Path:
    """A good clip set of its own."""
    (scratch / name).mkdir()
    return write_clip_set(scratch / name)


def builds(scratch: Path, root: Path, *more: str, recipe: str = RECIPE) -> tuple[int, str]:
    """A build of recordings."""
    path = scratch / "recipe.yaml"
    path.write_text(recipe)
    given = ["--recordings", root] if recipe == RECIPE else []
    return run(build.main, path, *given, "--out", scratch / "out", "--processes", "1", *more)


def headers(scratch: Path) -> None:
    """Rows 11 and 12: headers without a length."""
    for row, form in (("11", "FLAC"), ("12", "WAV")):
        path = scratch / f"one.{form.lower()}"
        path.write_bytes(damaged(form, NOISE))
        print(
            f"{row:>3}  {form} without a length: {read_header(path)}, {len(load(path)):,} samples read"
        )
        folder = every(
            fresh(scratch, form), lambda p, f=form: p.write_bytes(damaged(f, soundfile.read(p)[0]))
        )
        page = ["--no-voice", "--page", scratch / "a.html"]
        show("", "audit", run(audit.main, folder, *page), "does not tell", "do not tell", "clips, ")
        said = run(doctor.main, "--checkpoint", "fake", "--manifest", folder)
        show("", "doctor", said, "do not tell", "does not tell", "BROKEN")
        name = ["--manifest", folder, "--runs-dir", scratch, "--name", form, "--iterations", "1"]
        said = run(optimize.main, "--checkpoint", "fake", *name)
        show("", "optimize", said, "gain", "kept", "replaced", "error")
        (scratch / f"r{form}").mkdir()
        root = make_recordings(scratch / f"r{form}", speech=16, other=14)
        for path in root.rglob("*.flac"):
            path.write_bytes(damaged(form, soundfile.read(path)[0]))
        (scratch / f"b{form}").mkdir()
        show(
            "",
            "build",
            builds(scratch / f"b{form}", root),
            "do not tell",
            "does not tell",
            "wrote",
            "error",
        )


def levels(scratch: Path) -> None:
    """Rows 13, 14 and 20: offset, channels that cancel, floats in the range of integers."""
    (scratch / "dc").mkdir()
    root = make_recordings(scratch / "dc")
    for path in (root / "speech").iterdir():
        soundfile.write(path, 0.18 * soundfile.read(path)[0] + 0.05, RATE)
    show(
        "13",
        "an offset of .05 under speech of RMS .018",
        builds(scratch / "dc", root),
        "offset",
        "wrote",
    )
    off = []
    for row in rows_of(scratch / "dc" / "out"):
        if row["category"] == "speech" and row["noise"] == "white" and row["snr_db"]:
            wave = soundfile.read(scratch / "dc" / "out" / row["path"])[0]
            whole = soundfile.read(root / row["recording"])[0]
            first = round(float(row["start_s"]) * RATE)
            clean = whole[first : first + len(wave)] - whole.mean()
            clean *= (wave @ clean) / (clean @ clean)
            off.append(10 * np.log10(clean.var() / (wave - clean).var()) - float(row["snr_db"]))
    print(f"       audible SNR less the manifest's: {np.mean(off):+.2f} dB over {len(off)} clips")
    (scratch / "cancel").mkdir()
    root = make_recordings(scratch / "cancel")
    for path in (root / "speech").iterdir():
        wave = soundfile.read(path)[0]
        soundfile.write(path, np.stack([wave, -wave], 1), RATE)
    show("14", "all speech has channels that cancel", builds(scratch / "cancel", root), "error")
    print(
        f"       rejected.csv: {len((scratch / 'cancel/out/rejected.csv').read_text().splitlines()) - 1} rows"
    )
    show("", "its dry run", builds(scratch / "cancel", root, "--dry-run"), "missing", "left out")
    spoils = {
        "cancel": lambda w: np.stack([w, -w], 1),
        "loud": lambda w: 32_768 * w,
        "offset": lambda w: w + 0.3,
    }
    for name, spoil in spoils.items():
        folder = every(
            fresh(scratch, f"l{name}"),
            lambda p, s=spoil: soundfile.write(p, s(soundfile.read(p)[0]), RATE, subtype="FLOAT"),
        )
        for verb in (doctor.main, audit.main):
            given = (
                ["--checkpoint", "fake", "--manifest"] if verb is doctor.main else ["--no-voice"]
            )
            more = [] if verb is doctor.main else ["--page", scratch / "a.html"]
            said = run(verb, *given, folder, *more)
            show("20", f"{name}, {verb.__module__}", said, "offset", "cancel", "full scale,")


def names(scratch: Path) -> None:
    """Rows 15 to 19 and 28: endings, spellings, tables of Excel, units, links."""
    (scratch / "m4a").mkdir()
    root = make_recordings(scratch / "m4a")
    lines = []
    for kind in ("speech", "environment", "music", "animal", "noise"):
        label = "SPEECH" if kind == "speech" else "NONSPEECH"
        lines.append(
            f"  - {{layout: folder, path: {root / kind}, label: {label}, category: {kind}}}"
        )
    for i in range(20):
        (root / "speech" / f"{i}.m4a").write_bytes(b"x")
    recipe = RECIPE + "splits: {train: 1}\nrecordings:\n" + "\n".join(lines) + "\n"
    show("15", "20 .m4a files", builds(scratch / "m4a", root, recipe=recipe), ".m4a", "wrote")

    def leak(rows: list[dict[str, str]]) -> None:
        for row, name in zip(rows[:6:2], (NFC, NFD, f"{NFC.upper()} "), strict=True):
            row["source_id"] = name
            row["split"] = {NFC: "train", NFD: "dev"}.get(name, "test")

    folder = change_set(fresh(scratch, "leak"), leak)
    for verb, more in (
        (optimize.main, ["--checkpoint", "fake", "--runs-dir", scratch, "--manifest"]),
        (finetune.main, ["--checkpoint", "pocket-base", "--out", scratch / "x", "--manifest"]),
        (doctor.main, ["--checkpoint", "fake", "--manifest"]),
    ):
        show("16", verb.__module__, run(verb, *more, folder), "one name")

    folder = fresh(scratch, "excel")
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text("\ufeffsep=;\n" + text.replace(",", ";"), encoding="utf-8")
    show(
        "17",
        "a manifest that Excel saved",
        run(doctor.main, "--checkpoint", "fake", "--manifest", folder),
        "train:",
        "error",
    )

    folder = fresh(scratch, "nfd")
    (folder / "c0-0.wav").rename(folder / f"{NFD}.wav")
    change_set(folder, lambda rows: rows[0].update(path=f".\\{NFC}.wav"))
    show("18", "NFD on disk, NFC and a backslash in the table",
         run(doctor.main, "--checkpoint", "fake", "--manifest", folder), "spelled", "is missing")  # fmt: skip

    folder = change_set(
        fresh(scratch, "units"), lambda rows: [r.update(duration_ms="0.5") for r in rows] and None
    )
    for verb, more in (
        (doctor.main, ["--checkpoint", "fake", "--manifest"]),
        (audit.main, ["--page", scratch / "a.html", "--no-voice"]),
    ):
        show(
            "19", f"durations in seconds, {verb.__module__}", run(verb, *more, folder), "in seconds"
        )

    folder = fresh(scratch, "links")
    (folder / "c0-0.wav").rename(scratch / "blob")
    (folder / "c0-0.wav").symlink_to(scratch / "blob")
    show(
        "28",
        "a link into a hub's cache",
        run(doctor.main, "--checkpoint", "fake", "--manifest", folder),
        "link",
    )
    (folder / "c0-0.wav").unlink()
    (folder / "c0-0.wav").symlink_to(".git/annex/objects/key.wav")
    show(
        "28",
        "a link to what git-annex has not fetched",
        run(doctor.main, "--checkpoint", "fake", "--manifest", folder),
        "link",
    )


def pages(scratch: Path) -> None:
    """Row 21: silence, one sample, NaN; then a build with 5 % broken files."""
    folder = fresh(scratch, "pages")
    spoils = (
        lambda p: soundfile.write(p, np.zeros(8000), RATE),
        lambda p: soundfile.write(p, np.zeros(1), RATE),
        lambda p: soundfile.write(p, np.full(9, np.nan), RATE, subtype="FLOAT"),
    )
    name = ["--manifest", folder, "--runs-dir", scratch, "--name", "pages", "--iterations", "1"]
    run(optimize.main, "--checkpoint", "fake", *name)
    for i, path in enumerate(sorted(folder.glob("*.wav"))):
        spoils[i % 3](path)
    change_set(folder, lambda rows: None)
    show(
        "21",
        "audit",
        run(audit.main, folder, "--page", scratch / "a.html"),
        "silence",
        "no numbers",
        "; spectrograms",
    )
    show("21", "report", run(report.main, scratch / "pages"), "written to", "error")
    (scratch / "five").mkdir()
    root = make_recordings(scratch / "five", speech=40, other=20)
    broken = [path for i, path in enumerate(sorted(root.rglob("*.flac"))) if i % 20 == 7]
    for i, path in enumerate(broken):
        path.write_bytes([b"", b"no sound", path.read_bytes()[:20_000]][i % 3])
    show(
        "",
        f"{len(broken)} of 120 recordings are broken (5 %)",
        builds(scratch / "five", root),
        "left out",
        "wrote",
        "error",
    )


def main() -> int:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as scratch:
        for part in (headers, levels, names, pages):
            place = Path(scratch) / part.__name__
            place.mkdir()
            part(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
