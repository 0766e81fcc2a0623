"""Our scorer inside the real packages: they find what it says is better."""

import dataclasses

import numpy as np
import pytest

import opro
from evaluators.fakes import FakeEvaluator
from evaluators.prompts import Prompt
from opro.backends.scoring import answered
from opro.search.objective import Objective

TEXTS = [f"Speech number {i}? A) yes B) no" for i in range(8)]
SEED = Prompt(TEXTS[0])


@pytest.fixture(scope="module")
def clips():
    return opro.load_clips("data/demo", "dev")[:64]


@pytest.fixture(scope="module")
def accuracy(clips):
    table = FakeEvaluator().score([Prompt(t) for t in TEXTS], clips)
    return (table.logp.argmax(-1) == clips.targets.truth).mean(axis=1)


def test_what_cannot_be_scored_is_wrong_everywhere(clips):
    for text in ("", " \n"):
        found = answered(FakeEvaluator(), SEED, text, clips)
        assert set(found.said) == {""} and not found.probability.any() and found.error


def test_gepa_finds_the_best_of_what_it_proposes(clips, accuracy):
    gepa = pytest.importorskip("gepa")
    from opro.backends.for_gepa import GepaBackend

    backend = GepaBackend(FakeEvaluator(), SEED)
    said = backend.evaluate(list(clips), {"prompt": TEXTS[0]}, capture_traces=True)
    assert np.mean(said.scores) == accuracy[0]
    rows = backend.make_reflective_dataset({}, said, ["prompt"])["prompt"]
    assert len(rows) == len(clips) and f"right is {clips[0].label}" in rows[0]["Feedback"]
    left = iter(TEXTS[1:] * 9)
    result = gepa.optimize(
        {"prompt": TEXTS[0]},
        list(clips),
        list(clips),
        adapter=backend,
        custom_candidate_proposer=lambda candidate, data, names: {"prompt": next(left)},
        max_metric_calls=len(clips) * 40,
        reflection_minibatch_size=len(clips),
        skip_perfect_score=False,
    )
    assert result.best_candidate["prompt"] == TEXTS[int(accuracy.argmax())]
    assert max(result.val_aggregate_scores) == accuracy.max()


def test_dspy_finds_the_best_of_what_it_proposes(clips, accuracy):
    dspy = pytest.importorskip("dspy")
    from opro.backends.for_dspy import DspyBackend, right

    program = DspyBackend(FakeEvaluator(), SEED, clips)
    evaluate = dspy.Evaluate(
        devset=program.examples(), metric=right, num_threads=1, display_progress=False
    )
    assert abs(evaluate(program).score / 100 - accuracy[0]) < 1e-3
    replies = [{"proposed_instruction": t, "proposed_prefix_for_output_field": ""} for t in TEXTS]
    lm = dspy.utils.DummyLM(replies * 4)
    search = dspy.COPRO(prompt_model=lm, metric=right, breadth=len(TEXTS), depth=1)
    kwargs = {"num_threads": 1, "display_progress": False}
    with dspy.context(lm=lm):
        better = search.compile(program, trainset=program.examples(), eval_kwargs=kwargs)
    assert evaluate(better).score >= evaluate(program).score
    assert better.prompt in TEXTS


def test_optuna_maximises_the_objective_and_prunes(clips):
    optuna = pytest.importorskip("optuna")
    from opro.backends.for_optuna import OptunaBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def make(trial):
        return dataclasses.replace(SEED, text=trial.suggest_categorical("text", TEXTS))

    for objective in (Objective(), Objective(threshold="dev")):
        backend = OptunaBackend(FakeEvaluator(), clips, make, objective)
        sampler = optuna.samplers.BruteForceSampler(seed=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(backend)
        table = FakeEvaluator().score([Prompt(t) for t in TEXTS], clips)
        values = [objective.measure(table.logp[i], clips).reward for i in range(len(TEXTS))]
        done = [t for t in study.trials if t.state.name == "COMPLETE"]
        assert study.best_value == pytest.approx(max(values))
        assert len(done) < len(TEXTS) or len(study.trials) == len(TEXTS)
