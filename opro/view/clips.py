"""Clips that the page may play: those of manifests it has read, each under a name that says nothing about it."""

import hashlib
import hmac
import io
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from evaluators.audio import RATE, load
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import resolve
from evaluators.manifest import manifest_path, read_manifest
from evaluators.renderings import read_renderings
from evaluators.tasks import Task

ROUTE = "/clip/"


@dataclass
class Clips:
    """The clips of all manifests that were asked for.

    Attributes:
        key: Of this process: a name can neither be guessed nor read by a listener who knows the manifest.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)
    _by_token: dict[str, Clip] = field(default_factory=dict)
    _manifests: dict[tuple[Path, int, str, tuple[str, ...]], tuple[Clip, ...]] = field(
        default_factory=dict
    )

    def of(self, manifest: str, task: Task) -> tuple[Clip, ...]:
        """All clips of a manifest, read again when it changes.

        Raises:
            UserError: It cannot be read.
        """
        path = manifest_path(resolve(Path(manifest)))
        key = path, path.stat().st_mtime_ns if path.is_file() else 0, task.column, task.labels
        if key not in self._manifests:
            self._manifests[key] = tuple(read_manifest(path, task))
        return self._manifests[key]

    def by_id(self, manifest: str, task: Task) -> tuple[Mapping[str, Clip], str]:
        """(clips by id, those of further renderings too, why there are none)."""
        try:
            first = self.of(manifest, task)
            more = read_renderings(resolve(Path(manifest)), task)
            return {clip.clip_id: clip for one in (first, *more) for clip in one}, ""
        except UserError as error:
            return {}, f"no clip can be played: {error}"

    def url(self, clip: Clip) -> str:
        """Where the page finds a clip's sound."""
        raw = f"{clip.path}|{clip.sha256}".encode()
        token = hmac.new(self.key, raw, hashlib.sha256).hexdigest()[:32]
        self._by_token[token] = clip
        return f"{ROUTE}{token}"

    def player(self, clip: Clip | None, name: str) -> dict[str, Any]:
        """A player as the templates take it. `name` is read out for it."""
        if clip is None:
            return {"url": "", "why": "not in the manifest any more", "name": name}
        return {"url": self.url(clip), "why": "", "name": name}

    def sound(self, token: str) -> bytes:
        """The clip under a name as 16-bit WAV, 16 kHz mono, as a model gets it.

        Raises:
            UserError: The page has shown no clip under that name, or it cannot be decoded.
        """
        if token not in self._by_token:
            raise UserError("the page has shown no such clip")
        buffer = io.BytesIO()
        soundfile.write(buffer, load(self._by_token[token].path), RATE, "PCM_16", format="WAV")
        return buffer.getvalue()
