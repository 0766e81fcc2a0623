"""Recordings under free licences from Debian packages, fetched without root.

The catalogue lists each file: package, path inside it, label, category, source id, language, licence and the part to
cut. `apt-get download` fetches a package and `dpkg -x` unpacks it; nothing is installed. Some packages hold archives:
zip (.pk3), Qt resources (.rcc), RIFF files in a .cat.
"""

import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import zstandard

from evaluators.audio import RATE, Wave
from evaluators.errors import PauseError, UserError
from evaluators.files import copy_file, is_written, read_table, write_bytes

from .recipe import Packages
from .recordings import write_table
from .render import encode

COLUMNS = tuple(  # of the catalogue
    "package file label category source_id language licence start_s duration_s est_snr_db".split()
)
LISTED = tuple(  # of the manifest that is written
    "path label category source_id source_package source_file language duration_s licence est_snr_db start_s".split()
)
RAW = {".raw": 16_000}  # bare 16-bit samples and their rate


def choose(recipe: Packages, packages: str | None) -> dict[str, list[dict[str, str]]]:
    """Package -> rows of the catalogue, of the packages to fetch.

    Args:
        recipe: Names the catalogue and the default packages.
        packages: Names separated by commas, "all", or None for the recipe's.

    Raises:
        UserError: The catalogue is wrong (file and line), or does not hold a package.
    """
    known: dict[str, list[dict[str, str]]] = defaultdict(list)
    for where, row in read_table(recipe.catalogue, COLUMNS):
        for name in ("start_s", "duration_s"):
            try:
                float(row[name])
            except ValueError:
                raise UserError(f"{where}: {name} is {row[name]!r}; expected seconds") from None
        known[row["package"]].append(row)
    names = packages.split(",") if packages else list(recipe.packages)
    if packages == "all" or not names:
        names = sorted(known)
    for name in names:
        if name not in known:
            raise UserError(
                f"--packages: {name!r} is not in the catalogue; known are {', '.join(sorted(known))}"
            )
    return {name: known[name] for name in names}


def _minutes(chosen: Mapping[str, Sequence[Mapping[str, str]]]) -> float:
    return sum(float(row["duration_s"]) for rows in chosen.values() for row in rows) / 60


def outline(chosen: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """What would be fetched: recordings per package and label, as lines of text."""
    count = Counter(row["label"] for rows in chosen.values() for row in rows)
    return [
        *(f"{name:34} {len(rows):5} recordings" for name, rows in chosen.items()),
        f"{count.total():,} recordings, {_minutes(chosen):.0f} minutes: "
        + ", ".join(f"{n} {label}" for label, n in sorted(count.items())),
    ]


def fetch(chosen: Mapping[str, Sequence[dict[str, str]]], out: Path) -> str:
    """Writes manifest.csv, audio/ and licences/ into `out`; returns what was written, in words.

    A package that an interrupted call finished is not fetched again.

    Raises:
        UserError: This machine has no apt-get or dpkg.
        PauseError: A package could not be fetched; the same command goes on.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(
                f"recipe debian needs {tool}, which this machine lacks; run it on Debian or Ubuntu"
                " (a container will do), or give recordings of your own"
            )
    out.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    missing: list[str] = []
    for number, (name, rows) in enumerate(chosen.items(), 1):
        finished = out / ".done" / f"{name}.csv"
        if not is_written(finished):
            print(f"{number}/{len(chosen)} {name}", file=sys.stderr, flush=True)
            made, lost = _fetch_package(name, rows, out)
            missing += lost
            finished.parent.mkdir(exist_ok=True)
            write_table(finished, made, LISTED)
        done += [row for _, row in read_table(finished, ("path",))]
    write_table(out / "manifest.csv", done, LISTED)
    shutil.rmtree(out / ".done")
    for line in missing[:10]:
        print(f"warning: {line}", file=sys.stderr)
    return (
        f"wrote {out}: {len(done):,} recordings, {_minutes(chosen):.0f} minutes"
        + (f", {len(missing)} of the catalogue could not be had" if missing else "")
        + f"; build clips with: python -m data.build factorial --recordings {out} --out DIR"
    )


def _fetch_package(
    name: str, rows: Sequence[dict[str, str]], out: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the recordings written, and why others could not be."""
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch)
        _run(["apt-get", "download", "-qq", name], folder)
        _run(["dpkg", "-x", next(folder.glob("*.deb")).name, "tree"], folder)
        tree, inner = folder / "tree", folder / "inner"
        for archive in list(tree.rglob("*")):
            _unpack(archive, inner)
        made, lost = [], []
        for row in rows:
            found = [p for root in (tree, inner) if (p := root / row["file"]).is_file()]
            if not found:
                lost.append(f"{name}: {row['file']} is not in this version of the package")
                continue
            try:
                made.append(_write_recording(found[0], row, out))
            except _PackageMissingError:
                raise
            except (UserError, soundfile.SoundFileError) as error:
                lost.append(f"{name}: {row['file']}: {error}")
        notice = tree / "usr/share/doc" / name / "copyright"
        if notice.exists():
            copy_file(notice, out / "licences" / f"{name}.copyright")
    return made, lost


class _PackageMissingError(UserError):
    """A Python package that decodes a format is not installed."""


def _run(command: Sequence[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr or result.stdout).strip().splitlines() or ["no reason"]
        raise PauseError(
            f"{' '.join(command)} failed ({reason[-1]}); check the network and that"
            " 'apt-get update' has run, then give the same command again"
        )


def _write_recording(source: Path, row: dict[str, str], out: Path) -> dict[str, Any]:
    """Cuts a recording out of a file, writes it as Ogg/Opus and returns its row."""
    start_s = float(row["start_s"])
    wave = _cut(decode(source), start_s, float(row["duration_s"]))
    stem = row["file"].replace("/", "_").rsplit(".", 1)[0]
    name = f"{stem}-{f'{start_s:g}'.replace('.', 'p')}.ogg"
    target = Path(row["label"].lower()) / row["category"] / row["package"] / name
    write_bytes(out / target, encode(wave, "opus"))
    changed = {
        "path": target.as_posix(),
        "source_package": row["package"],
        "source_file": row["file"],
        "duration_s": f"{len(wave) / RATE:.3f}",
    }
    return {name: changed.get(name, row.get(name)) for name in LISTED}


def decode(path: Path) -> Wave:
    """Any recording of the catalogue at 16 kHz mono: libsndfile, else PyAV (G.722, GSM), else bare samples."""
    if path.suffix in RAW:
        return np.fromfile(path, "<i2").astype(np.float32) / 32768
    try:
        if path.suffix in (".g722", ".gsm"):
            raise soundfile.SoundFileError("not libsndfile's")
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        wave, rate = _decode_av(path)
    mono = wave.mean(axis=1)
    return np.asarray(mono if rate == RATE else soxr.resample(mono, rate, RATE), dtype=np.float32)


def _decode_av(path: Path) -> tuple[np.ndarray, int]:
    try:
        import av
    except ImportError:
        raise _PackageMissingError(
            f"{path.name}: G.722 and GSM need the package av: pip install 'opro-audio[recordings]'"
        ) from None
    try:
        with av.open(str(path)) as container:
            frames = [f.to_ndarray() for f in container.decode(audio=0)]
            rate = container.streams.audio[0].rate
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"cannot be decoded ({error})") from None
    wave = np.concatenate(frames, axis=1).astype(np.float32)
    if np.issubdtype(frames[0].dtype, np.integer):
        wave /= np.iinfo(frames[0].dtype).max + 1
    return wave.T, rate


def _cut(wave: Wave, start_s: float, duration_s: float) -> Wave:
    first = round(start_s * RATE)
    cut = wave[first : first + round(duration_s * RATE)]
    if len(cut) < 0.5 * duration_s * RATE:
        raise UserError(f"ends before {start_s + duration_s:.2f} s")
    return cut


def _unpack(archive: Path, inner: Path) -> None:
    """Writes the files of an archive below `inner`; skips members that would leave it."""
    if archive.is_symlink() or not archive.is_file():
        return
    if archive.suffix in (".pk3", ".zip"):
        with zipfile.ZipFile(archive) as file:
            file.extractall(inner)  # zipfile strips absolute paths and ..
    elif archive.suffix == ".rcc":
        for name, data in read_rcc(archive.read_bytes()):
            _place(inner, f"{archive.stem}/{name}", data)
    elif archive.suffix == ".cat":
        for number, data in enumerate(read_riffs(archive.read_bytes())):
            _place(inner, f"osfx_{number:02d}.wav", data)


def _place(inner: Path, name: str, data: bytes) -> None:
    target = (inner / name).resolve()
    if target.is_relative_to(inner.resolve()):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def read_riffs(data: bytes) -> Iterator[bytes]:
    """The RIFF files that stand one after another in OpenTTD's sound archive."""
    at = data.find(b"RIFF")
    while at >= 0:
        size = 8 + struct.unpack_from("<I", data, at + 4)[0]
        yield data[at : at + size]
        at = data.find(b"RIFF", at + size)


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file in a Qt binary resource: a tree of names with offsets into the data."""
    if data[:4] != b"qres":
        return
    version, tree, blobs, names = struct.unpack_from(">IIII", data, 4)
    size = 14 if version < 2 else 22

    def name_at(offset: int) -> str:
        length = struct.unpack_from(">H", data, names + offset)[0]
        start = names + offset + 6
        return data[start : start + 2 * length].decode("utf-16-be")

    def walk(node: int, path: str) -> Iterator[tuple[str, bytes]]:
        at = tree + node * size
        name_offset, flags = struct.unpack_from(">IH", data, at)
        here = path if node == 0 else f"{path}/{name_at(name_offset)}".lstrip("/")
        if flags & 2:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, here)
            return
        offset = struct.unpack_from(">I", data, at + 10)[0]
        length = struct.unpack_from(">I", data, blobs + offset)[0]
        blob = data[blobs + offset + 4 : blobs + offset + 4 + length]
        if flags & 1:
            blob = zlib.decompress(blob[4:])
        elif flags & 4:
            blob = zstandard.ZstdDecompressor().decompressobj().decompress(blob)
        yield here, blob

    yield from walk(0, "")
