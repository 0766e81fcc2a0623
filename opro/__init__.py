"""Finds a better prompt for an audio language model, and finds out whether it really is better.

    import opro

    run = opro.optimize("pocket-base", "prompts/seeds/baselines.yaml", "data/demo")
    print(run)                                # leaderboard, decision
    answers = opro.predict(run, ["my_audio/"])  # data frames

`optimize` and `predict` are also the modules behind ``python -m opro.optimize`` and ``python -m opro.predict``. Nothing
is loaded before it is used, so that ``import opro`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluators.classifier import Classifier as Classifier
    from evaluators.clips import Clip as Clip
    from evaluators.clips import ClipSet as ClipSet
    from evaluators.errors import UserError as UserError
    from evaluators.evaluator import Evaluator as Evaluator
    from evaluators.evaluator import ScoreTable as ScoreTable
    from evaluators.evaluator import Uncached as Uncached
    from evaluators.prompts import Prompt as Prompt
    from opro.frames import compare as compare
    from opro.frames import load_clips as load_clips
    from opro.frames import load_prompts as load_prompts
    from opro.frames import score as score
    from opro.optimize import optimize as optimize
    from opro.predict import predict as predict
    from opro.results.result import Result as Result
    from opro.results.result import load_run as load_run
    from opro.search.history import Candidate as Candidate
    from opro.search.objective import add_metric as add_metric
    from opro.search.proposer import Proposer as Proposer
    from opro.search.proposer import SearchView as SearchView

_VERBS = ("optimize", "predict")  # modules that can be called
_PLACES = {
    "Candidate": "opro.search.history",
    "Classifier": "evaluators.classifier",
    "Clip": "evaluators.clips",
    "ClipSet": "evaluators.clips",
    "Evaluator": "evaluators.evaluator",
    "Prompt": "evaluators.prompts",
    "Proposer": "opro.search.proposer",
    "Result": "opro.results.result",
    "ScoreTable": "evaluators.evaluator",
    "SearchView": "opro.search.proposer",
    "Uncached": "evaluators.evaluator",
    "UserError": "evaluators.errors",
    "add_metric": "opro.search.objective",
    "compare": "opro.frames",
    "load_clips": "opro.frames",
    "load_prompts": "opro.frames",
    "load_run": "opro.results.result",
    "score": "opro.frames",
}
__all__ = [*_PLACES, *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return importlib.import_module(f"opro.{name}")
    if name in _PLACES:
        return vars(importlib.import_module(_PLACES[name]))[name]
    raise AttributeError(f"module 'opro' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
