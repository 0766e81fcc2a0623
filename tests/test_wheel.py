"""An installed wheel holds what ships, nothing at the top level besides opro and evaluators, and works anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built without the network from a copy of the tree: setuptools writes beside what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("evaluators", "opro", "data", "prompts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *flags, str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """What pip does with a wheel of plain Python: it unpacks it."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


ALONE = (  # a checkout that is installed for editing is found through a finder of its own
    "import runpy, sys; sys.meta_path[:] = ["
    "f for f in sys.meta_path if not getattr(f, '__module__', '').startswith('__editable__')]; "
)
MODULE = "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def run(installed, cwd, *arguments):
    """A Python process that finds the installed packages and not the checkout: ``-m MODULE ...`` or ``-c CODE``."""
    kind, first, *rest = arguments
    command = ["-c", ALONE + first] if kind == "-c" else ["-c", ALONE + MODULE, first, *rest]
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_what_ships_and_no_makers(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"opro", "evaluators"}
    assert not [name for name in names if "makers" in name]
    for name in (
        "opro/data/demo/manifest.csv",
        "opro/data/demo/clips/dev-n001.ogg",
        "opro/data/pocket/base/model.safetensors",
        "opro/data/recipes/debian.csv",
        "opro/data/templates/audit.html",
        "opro/prompts/seeds/baselines.yaml",
        "opro/results/templates/report.html",
        "opro/view/templates/view.css",
        "opro/view/templates/run.html",
    ):
        assert name in names


def test_every_package_of_the_checkout_is_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in (*ROOT.glob("evaluators/**/*.py"), *ROOT.glob("opro/**/*.py")):
        assert path.relative_to(ROOT).as_posix() in names


def test_commands_and_shipped_files_work_in_another_folder(installed, tmp_path):
    done = run(installed, tmp_path, "-m", "opro.data.build", "--help")
    assert done.returncode == 0 and "RECIPE" in done.stdout, done.stderr
    code = (
        "import evaluators.files as f; print(f.__file__); print(f.shipped('data/demo/manifest.csv'));"
        "print(f.shipped('prompts/seeds/baselines.yaml'))"
    )
    done = run(installed, tmp_path, "-c", code)
    paths = [Path(line) for line in done.stdout.split()]
    assert len(paths) == 3, done.stderr
    assert all(path.is_file() and path.is_relative_to(installed) for path in paths)


def test_the_demo_recipe_says_that_only_a_checkout_can_build_it(installed, tmp_path):
    command = ("-m", "opro.data.build", "demo", "--recordings", ".", "--out", "out")
    done = run(installed, tmp_path, *command)
    assert done.returncode == 2
    assert "this needs data/makers, which only a checkout of the project has" in done.stderr


def test_a_recipe_can_be_checked_without_makers(installed, tmp_path):
    done = run(installed, tmp_path, "-m", "opro.data.build", "debian", "--out", "x", "--dry-run")
    assert done.returncode == 0 and "580 recordings" in done.stdout, done.stderr
