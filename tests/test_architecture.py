"""Imports go one way: the floors are written in pyproject.toml, import-linter keeps them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    command = [
        Path(sys.executable).with_name("lint-imports"),
        "--config",
        str(config),
        "--no-cache",
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_imports_keep_to_their_floors():
    done = lint(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout


def test_the_check_can_fail(tmp_path):
    wrong = tmp_path / "pyproject.toml"
    wrong.write_text(
        '[tool.importlinter]\nroot_packages = ["evaluators", "opro"]\n[[tool.importlinter.contracts]]\n'
        'name = "upside down"\ntype = "layers"\nlayers = ["evaluators", "opro"]\n'
    )
    assert "upside down BROKEN" in lint(wrong).stdout


@pytest.mark.parametrize("module", ["opro.optimize", "opro.matrix", "evaluators.build"])
def test_no_verb_imports_torch_before_it_runs(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
