"""Logs of small evaluations, by the packages that write them: python tests/write_logs.py KIND FOLDER --samples N

KIND is inspect, lm or lmms; it runs in an environment that holds inspect-ai, lm-eval or lmms-eval. Two models answer
the same questions, the second one better. Nothing is downloaded. For tests/bench_logs.py and tests/assets/logs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

SKILL = {"worse": 0.55, "better": 0.9}
MULTIPLE_CHOICE = """\
task: toy_choice
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GENERATED = """\
task: toy_reply
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: "answer is (\\\\w+)"}, {function: take_first}]}
  - {name: flexible-extract, filter: [{function: regex, regex_pattern: "(yes|no)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
LMMS = """\
task: toy_heard
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: generate_until
doc_to_visual: !function heard.nothing
doc_to_text: !function heard.question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 8}
process_results: !function heard.scores
metric_list:
  - {metric: exact, aggregation: mean, higher_is_better: true}
  - {metric: judged, aggregation: !function heard.mean_score, higher_is_better: true}
"""
HEARD = """\
def nothing(doc):
    return []
def question(doc, more=None):
    return doc["question"]
def scores(doc, replies):
    right = float(replies[0].strip() == doc["answer"])
    return {"exact": right, "judged": {"speaker": doc["speaker"], "score": right}}
def mean_score(items):
    return sum(i["score"] for i in items) / len(items)
"""


def chance(*what: object) -> float:
    """A number from 0 to 1 that belongs to what is given, the same on every machine."""
    raw = hashlib.sha256(repr(what).encode()).digest()
    return int.from_bytes(raw[:6], "big") / 2**48


def questions(n: int) -> list[dict[str, str]]:
    """Two of a speaker; every third answer is no."""
    return [
        {"question": f"Clip {i}: speech?", "answer": "no" if i % 3 == 2 else "yes", "speaker": f"p{i // 2}"}
        for i in range(n)
    ]  # fmt: skip


def says(model: str, asked: dict[str, str], epoch: int = 1) -> str:
    """What a model answers."""
    right = chance(model, asked["question"], epoch) < SKILL[model]
    return asked["answer"] if right else {"yes": "no", "no": "yes"}[asked["answer"]]


def inspect(folder: Path, n: int) -> None:
    """Two .eval and one .json log of two epochs, whose judge fails on one sample and has no score for another."""
    from inspect_ai import Task, eval, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score, match, mean, scorer
    from inspect_ai.solver import solver

    asked = questions(n)

    @solver
    def answers(model):
        async def solve(state, generate):
            state.output = ModelOutput.from_content(
                model, says(model, asked[int(state.sample_id[1:])], state.epoch)
            )
            return state

        return solve

    @scorer(metrics={"loud": [mean()], "clear": [mean()]})
    def judged():
        async def score(state, target):
            if state.sample_id == "s1":
                raise ValueError("the judge is down")
            if state.sample_id == "s2":
                return Score.unscored(reason="no reply")
            loud = 1 + 4 * chance("loud", state.sample_id, state.output.completion)
            return Score(
                value={"loud": round(loud, 2), "clear": 0.5}, answer=state.output.completion
            )

        return score

    @task
    def toy_speech(model="worse"):
        data = [
            Sample(id=f"s{i}", input=q["question"], target=q["answer"], metadata={"speaker": q["speaker"]})
            for i, q in enumerate(asked)
        ]  # fmt: skip
        return Task(
            dataset=MemoryDataset(data, name="toy"),
            solver=answers(model),
            scorer=[match(), judged()],
            fail_on_error=False,
        )

    for model, form in (("worse", "eval"), ("better", "eval"), ("better", "json")):
        eval(
            toy_speech(model), model=f"mockllm/{model}", epochs=2, log_dir=str(folder / "inspect"),
            log_format=form, display="none", log_realtime=False,
        )  # fmt: skip


def lm(folder: Path, n: int) -> None:
    """Two tasks of lm-evaluation-harness, one of them with two filters, by two models."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    by_question = {q["question"]: q for q in questions(n)}

    class Toy(LM):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def loglikelihood(self, requests):
            out = []
            for one in requests:
                prompt, choice = one.args
                said = says(self.name, by_question[prompt]) == choice.strip()
                sure = chance(self.name, prompt, "sure") / 4
                out.append((-0.3 + sure if said else -1.2 - sure, said))
            return out

        def generate_until(self, requests):
            said = [says(self.name, by_question[one.args[0]]) for one in requests]
            short = [chance(self.name, one.args[0], "short") < 0.3 for one in requests]
            return [s if k else f"The answer is {s}" for s, k in zip(said, short, strict=True)]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

    tasks = with_questions(folder, n, {"choice.yaml": MULTIPLE_CHOICE, "reply.yaml": GENERATED})
    for name in SKILL:
        tracker = EvaluationTracker(output_path=str(folder / "lm" / name))
        tracker.general_config_tracker.log_experiment_args("", f"pretrained={name}", "", "", False)
        results = lm_eval.simple_evaluate(
            model=Toy(name), tasks=["toy_choice", "toy_reply"], log_samples=True,
            task_manager=TaskManager(include_path=str(tasks)), bootstrap_iters=0,
        )  # fmt: skip
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for one in samples:
            tracker.save_results_samples(one, samples[one])


def lmms(folder: Path, n: int) -> None:
    """A task of lmms-eval with a score of its own kind, by two models of which each always answers the same."""
    tasks = with_questions(folder, n, {"heard.yaml": LMMS, "heard.py": HEARD})
    for reply in ("no", "yes"):
        subprocess.run(
            [
                *(sys.executable, "-m", "lmms_eval", "--model", "dummy"),
                *(
                    "--model_args",
                    f"response={reply}",
                    "--include_path",
                    tasks,
                    "--tasks",
                    "toy_heard",
                ),
                *("--output_path", folder / "lmms" / reply, "--log_samples", "--batch_size", "1"),
            ],
            check=True,
        )


def with_questions(folder: Path, n: int, files: dict[str, str]) -> Path:
    """A folder of task files that find the questions."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    path = (tasks / "questions.jsonl").resolve()
    path.write_text("".join(json.dumps(q) + "\n" for q in questions(n)))
    for name, text in files.items():
        (tasks / name).write_text(text.replace("QUESTIONS", str(path)))
    return tasks


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["inspect", "lm", "lmms"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    {"inspect": inspect, "lm": lm, "lmms": lmms}[args.kind](args.folder, args.samples)


if __name__ == "__main__":
    main()
