"""Help and leaderboard answer at once: nothing heavy is imported for them."""

import subprocess
import sys

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "pandas",
    "sklearn",
    "optuna",
    "httpx2",
    "scipy.special",  # with numpy's reader of Fortran
    "scipy.optimize",
    "numpy.random",
)


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split("\n")[-2].split())


MODULES = (
    "opro.optimize",
    "opro.leaderboard",
    "opro.rescore",
    "opro.stats",
    "opro.view.__main__",
    "opro.search.loop",
    "opro.proposers.openai_model",
    "evaluators.build",
    "evaluators.cache",
    "evaluators.statistics.metrics",
)


def test_importing_loads_nothing_heavy():
    """One after the other in one process, since starting Python for each is most of the cost."""
    one_by_one = (
        f"import importlib, sys\nfor name in {MODULES!r}:\n    importlib.import_module(name)\n"
        f"    assert not {set(HEAVY)!r} & set(sys.modules), name"
    )
    assert loaded(one_by_one) == set()


def test_help_loads_nothing_heavy():
    assert (
        loaded("import opro.optimize\ntry: opro.optimize.main(['--help'])\nexcept SystemExit: pass")
        == set()
    )


def test_versions_of_libraries_are_known_without_importing_them():
    code = "from evaluators.audio_lm.identity import versions"
    assert (
        loaded(f"{code}\nassert versions('peft')['peft'] and versions('x') == {{'x': 'none'}}")
        == set()
    )


def test_the_check_can_fail():
    assert "pandas" in loaded("import pandas")
