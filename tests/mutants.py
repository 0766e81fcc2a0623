"""What `bench_mutants.py` changes: the tests of each module, directed changes, and changes that cannot be noticed."""

MODULES: dict[str, tuple[str, ...]] = {
    "evaluators/metrics.py": ("tests/test_metrics.py", "tests/test_stats.py"),
    "opro/select.py": ("tests/test_select.py",),
    "opro/race.py": ("tests/test_race.py",),
    "opro/reward.py": ("tests/test_reward.py", "tests/test_race.py"),
    "evaluators/calibration.py": ("tests/test_calibration.py",),
    "opro/loop.py": ("tests/test_loop.py",),
    "opro/history.py": ("tests/test_history.py",),
    "opro/rescore.py": ("tests/test_rescore.py",),
    "opro/matrix.py": ("tests/test_matrix.py",),
    "evaluators/clips.py": ("tests/test_clips.py",),
    "evaluators/cache.py": ("tests/test_cache.py",),
    "evaluators/checkpoint.py": ("tests/test_checkpoint.py",),
    "evaluators/answers.py": ("tests/test_answers.py",),
    "evaluators/qwen_audio.py": ("tests/test_qwen_audio.py",),
    "evaluators/endpoint.py": ("tests/test_endpoint.py",),
    "opro/lm.py": ("tests/test_lm.py",),
}

# (module, text that stands there once, what it becomes). Each turns round something that the project promises.
DIRECTED: list[tuple[str, str, str]] = []

# (module, part of the line, the mutant's new text or "" for any, why nobody can notice it).
EQUIVALENT: list[tuple[str, str, str, str]] = []
