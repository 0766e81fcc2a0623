"""Logs as inspect_ai, lm-evaluation-harness and lmms-eval write them, made without these packages."""

import json
import zipfile
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets" / "logs"


def real(pattern: str) -> list[Path]:
    """The worse and the better log of `tests/assets/logs` that a pattern names."""
    folders = sorted(
        {p.parent for p in ASSETS.glob(f"*/{pattern}")}, key=lambda p: p.name in ("better", "yes")
    )
    return [next(folder.glob(pattern)) for folder in folders]  # fmt: skip


def summary(name: Any, value: Any, **more: Any) -> dict[str, Any]:
    """One run of a sample, as summaries.json has it; `value` is that of its scorer match, or of several by name."""
    values = value if isinstance(value, dict) else {"match": value}
    scores = {k: v if isinstance(v, dict) and "value" in v else {"value": v} for k, v in values.items()}  # fmt: skip
    plain = {"id": name, "epoch": 1, "input": f"Clip {name}?", "target": "yes", "metadata": {}}
    return plain | {"scores": scores} | more


def header(**more: Any) -> dict[str, Any]:
    """The header of a finished log."""
    about = {"task": "toy", "model": "mockllm/model"}
    return {"version": 2, "status": "success", "eval": about, "results": {"scores": []}} | more


def write_eval(
    path: Path, samples: list[Any], head: dict[str, Any] | None = None, packing: int = zipfile.ZIP_DEFLATED
) -> Path:  # fmt: skip
    """An .eval log with the members that are read."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("header.json", json.dumps(header() if head is None else head))
        archive.writestr("summaries.json", json.dumps(samples))
    return path


def line(doc_id: Any, acc: float, *, name: str = "none", **more: Any) -> dict[str, Any]:
    """One sample of lm-evaluation-harness with a free reply."""
    said = "yes" if acc else "no"
    plain = {"doc_id": doc_id, "doc": {"question": f"Clip {doc_id}?"}, "target": "yes"}
    plain |= {"arguments": {"gen_args_0": {"arg_0": f"Clip {doc_id}?", "arg_1": {"until": []}}}}
    plain |= {"resps": [[said]], "filtered_resps": [said], "filter": name, "metrics": ["acc"]}
    return plain | {"doc_hash": f"d{doc_id}", "acc": acc} | more


def choice(doc_id: int, right: int, logp: tuple[float, ...], **more: Any) -> dict[str, Any]:
    """One of its multiple-choice samples, of yes and no."""
    offered = {
        f"gen_args_{i}": {"arg_0": f"Clip {doc_id}?", "arg_1": f" {w}"}
        for i, w in enumerate(("yes", "no"))
    }
    replies = [[str(v), "False"] for v in logp]
    acc = float(max(range(2), key=logp.__getitem__) == right)
    more = {"arguments": offered, "filtered_resps": replies, "target": str(right)} | more
    return line(doc_id, acc, **more)


def write_lines(path: Path, lines: list[Any]) -> Path:
    """A file of samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path
