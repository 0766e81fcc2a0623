"""Imports go one way. A module without a place fails."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Every module may import those before it. Within a line: alphabetical, and none imports another of the same line.
LAYERS = [
    ["evaluators", "opro", "data", "prompts"],
    ["evaluators.errors"],
    ["evaluators.prompts", "evaluators.audio", "evaluators.kernels"],
    ["evaluators.clips", "evaluators.detectors"],
    [
        "evaluators.answers",
        "evaluators.scores",
        "evaluators.metrics",
        "evaluators.checkpoint",
        "evaluators.degrade",
        "evaluators.features",
        "evaluators.layers",
        "evaluators.memory",
    ],
    ["evaluators.family", "evaluators.calibration", "evaluators.psychometrics"],
    ["evaluators.loading", "evaluators.judgements", "evaluators.vad"],
    ["evaluators.cache", "evaluators.fakes", "evaluators.endpoint", "evaluators.selftest"],
    ["evaluators.options", "evaluators.qwen_audio", "evaluators.latency", "evaluators.ray_pool"],
    ["evaluators.samples"],
    ["evaluators.finetune"],
    ["evaluators.build", "evaluators.bench", "evaluators.joint"],
    [
        "opro.flags",
        "opro.history",
        "opro.reward",
        "opro.lm",
        "opro.forecast",
        "opro.surrogate",
        "opro.reflect",
    ],
    ["opro.reflect"],
    [
        "opro.runs",
        "opro.race",
        "opro.share",
        "opro.propose",
        "opro.rewrite",
        "opro.display",
        "opro.study",
    ],
    ["opro.select", "opro.table", "opro.predictions", "opro.figures"],
    ["opro.loop", "opro.matrix_table"],
    ["opro.summary"],
    [
        "opro.optimize",
        "opro.leaderboard",
        "opro.rescore",
        "opro.doctor",
        "opro.finetune",
        "opro.stats",
        "opro.power",
        "opro.report",
    ],
    ["opro.matrix"],
    ["data.grammar", "data.cues", "data.voice", "data.recordings", "data.attribution"],
    ["data.recipe", "data.checks"],
    ["data.scan", "data.audit_page"],
    ["data.design", "data.audit"],
    ["data.render", "data.study"],
    ["data.matched", "data.debian"],
    ["data.build", "data.train_pocket"],
]
PLACE = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def modules() -> dict[str, Path]:
    out = {}
    for package in ("evaluators", "opro", "data", "prompts"):
        for path in (ROOT / package).glob("*.py"):
            out[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return out


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in modules() and "." in name}


def test_every_module_has_a_place():
    assert set(modules()) == set(PLACE)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down_only(name):
    wrong = {other for other in imports(modules()[name]) if PLACE[other] >= PLACE[name]}
    assert not wrong, f"{name} imports {wrong}"
    if name.startswith(("evaluators", "opro")):
        assert not {other for other in imports(modules()[name]) if other.startswith("data")}


def test_opro_never_imports_torch_at_module_level():
    for name, path in modules().items():
        if name.startswith("opro"):
            for node in ast.parse(path.read_text()).body:
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                assert not [
                    n for n in names if n.split(".")[0] in ("torch", "transformers", "peft")
                ], name


def test_the_check_can_fail(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from opro import loop\nimport evaluators.cache\n")
    assert imports(path) == {"opro.loop", "evaluators.cache"}
