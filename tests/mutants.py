"""What `bench_mutants.py` changes: the tests of each module, directed changes, and changes that cannot be noticed."""

MODULES: dict[str, tuple[str, ...]] = {
    "evaluators/statistics/metrics.py": (
        "tests/evaluators/statistics/test_metrics.py",
        "tests/opro/test_stats.py",
    ),
    "opro/search/select.py": ("tests/opro/search/test_select.py",),
    "opro/search/race.py": ("tests/opro/search/test_race.py",),
    "opro/search/objective.py": (
        "tests/opro/search/test_objective.py",
        "tests/opro/search/test_race.py",
    ),
    "evaluators/statistics/calibration.py": ("tests/evaluators/statistics/test_calibration.py",),
    "opro/search/loop.py": ("tests/opro/search/test_loop.py",),
    "opro/search/history.py": ("tests/opro/search/test_history.py",),
    "opro/rescore.py": ("tests/opro/test_rescore.py",),
    "opro/matrix.py": ("tests/opro/test_matrix.py",),
    "evaluators/clips.py": ("tests/evaluators/test_clips.py",),
    "evaluators/cache.py": ("tests/evaluators/test_cache.py",),
    "evaluators/audio_lm/checkpoint.py": ("tests/evaluators/audio_lm/test_checkpoint.py",),
    "evaluators/audio_lm/answer_tokens.py": ("tests/evaluators/audio_lm/test_answer_tokens.py",),
    "evaluators/audio_lm/scorer.py": ("tests/evaluators/audio_lm/test_scorer.py",),
    "evaluators/endpoint.py": ("tests/evaluators/test_endpoint.py",),
    "opro/proposers/openai_model.py": ("tests/opro/proposers/test_openai_model.py",),
}

# (module, text that stands there once, what it becomes). Each turns round something that the project promises.
DIRECTED: list[tuple[str, str, str]] = []

# (module, part of the line, the mutant's new text or "" for any, why nobody can notice it).
EQUIVALENT: list[tuple[str, str, str, str]] = []
