"""The Optuna study grows as trials are told, and a resumed run's is that of an uninterrupted one."""

from dataclasses import replace
from datetime import datetime

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from searches import LABELS, scored_trial

from evaluators.prompts import Prompt
from opro.proposers.factors import levels, surface
from opro.results.optuna_study import LiveStudy
from opro.search.history import History

PROMPTS = [
    Prompt("Is there speech?\nA) yes\nB) no", (("SPEECH", ("A",)), ("NONSPEECH", ("B",)))),
    Prompt(
        "Noise is loud. Is it speech? A) no B) yes", (("SPEECH", ("B",)), ("NONSPEECH", ("A",)))
    ),
    Prompt("Say speech or noise.", (("SPEECH", ("speech",)), ("NONSPEECH", ("noise",)))),
]


def read(path):
    """What a dashboard sees, from a second reader."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def told(trial):
    return [(k, v) for k, v in trial.user_attrs.items() if k != "times"]


def plain(trials):
    return [
        (t.number, t.state, t.value, t.params, t.distributions, t.intermediate_values, told(t))
        for t in trials
    ]


def trial_of(number, state):
    prompt = replace(PROMPTS[number % 3], text=f"{PROMPTS[number % 3].text} {number}")
    one = scored_trial(number, 0.5 + number / 100, number // 4, prompt=prompt, blocks=(0.4, 0.5))
    if state == "failed":
        return replace(one, state="failed", outcome=None, error="no token", failed_after=3)
    return replace(one, state=state)


class Run:
    """A run whose process may end between any two steps."""

    def __init__(self, folder):
        self.folder = folder
        self.start()

    def start(self):
        self.history = History(self.folder / "trials.jsonl", LABELS, repair=True)
        self.study = LiveStudy(self.history, self.folder / "optuna.log", levels(LABELS), surface)
        self.study.catch_up()

    def tell(self, trial, dies, torn):
        self.history.tell(trial)
        if dies == "before it is shown":
            self.start()
            return
        self.study.told(trial, None)
        if dies == "after it was shown":
            if torn:
                with (self.folder / "optuna.log").open("ab") as file:
                    file.write(b'{"op_code": 4, "wor')
            (self.folder / "optuna.log.lock").symlink_to("nowhere")  # as a killed writer leaves it
            self.start()


def searched(folder, states, again, deaths):
    folder.mkdir()
    run = Run(folder)
    run.history.begin({"seed": 0})
    trials = [trial_of(i, state) for i, state in enumerate(states)]
    for iteration in sorted({t.iteration for t in trials}):
        own = [t for t in trials if t.iteration == iteration]
        run.history.add(iteration, [t.candidate for t in own])
        for t in own:
            run.study.stage(iteration, "scoring")
            run.tell(t, *deaths.get(t.number, ("never", False)))
    for t in trials:  # finalists that a race had dropped
        if t.state == "dropped" and t.number in again:
            run.tell(replace(t, state="complete"), *deaths.get(-t.number, ("never", False)))
    return read(folder / "optuna.log")


@settings(max_examples=30, deadline=None)  # each writes two studies
@given(
    st.lists(st.sampled_from(["complete", "dropped", "failed"]), min_size=1, max_size=7),
    st.sets(st.integers(0, 6)),
    st.dictionaries(
        st.integers(-6, 6),
        st.tuples(st.sampled_from(["before it is shown", "after it was shown"]), st.booleans()),
        max_size=4,
    ),
)
@example(["dropped"], {0}, {0: ("before it is shown", False)})  # told anew as complete
def test_resumed_is_uninterrupted(tmp_path_factory, states, again, deaths):
    folder = tmp_path_factory.mktemp("study")
    whole = searched(folder / "a", states, again, {})
    resumed = searched(folder / "b", states, again, deaths)
    assert plain(resumed) == plain(whole)
    assert [t.number for t in whole] == list(range(len(whole)))
    marked = {t.user_attrs["trial"] for t in resumed if "times" in t.user_attrs}
    assert marked <= {abs(n) for n, (when, _) in deaths.items() if when.startswith("before")}


def test_a_line_that_a_crash_cut_is_cut_off_and_the_others_keep_their_times(tmp_path):
    states = ["complete"] * 4
    searched(tmp_path / "a", states, set(), {1: ("after it was shown", True)})
    trials = read(tmp_path / "a" / "optuna.log")
    assert len(trials) == 4 and not any("times" in t.user_attrs for t in trials)


def test_a_trial_is_there_as_soon_as_it_is_told(tmp_path):
    begin = datetime.now()
    run = Run(tmp_path)
    run.history.begin({"seed": 0})
    trials = [trial_of(0, "complete"), trial_of(1, "dropped"), trial_of(2, "failed")]
    run.history.add(0, [t.candidate for t in trials])
    run.study.stage(0, "scoring")
    for i, trial in enumerate(trials):
        run.tell(trial, "never", False)
        assert len(read(tmp_path / "optuna.log")) == i + 1
    one, dropped, failed = read(tmp_path / "optuna.log")
    assert [t.state for t in (one, dropped, failed)] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert one.value == 0.5 and dropped.value is None and dropped.user_attrs["forecast"] == 0.51
    assert begin <= one.datetime_start <= one.datetime_complete <= datetime.now()
    assert one.user_attrs["text"] == trials[0].prompt.text and failed.user_attrs["error"]


def test_parameters_say_how_a_prompt_asks(tmp_path):
    found = [surface(p) for p in PROMPTS]
    assert found[0] == {
        "question": "asked",
        "first option": "SPEECH",
        "answers": "letters of options",
        "layout": "several lines",
        "explanation": "none",
        "hint": "none",
        "closing": "none",
    }
    assert found[1]["hint"] == "beside the question" and found[1]["first option"] == "NONSPEECH"
    assert found[2]["answers"] == "words" and found[2]["question"] == "stated"
    for one in found:
        assert set(one) == set(levels(LABELS))
        assert all(value in levels(LABELS)[name] for name, value in one.items())


def test_the_file_of_an_earlier_version_is_written_anew(tmp_path):
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.log")))
    optuna.create_study(storage=storage, study_name=tmp_path.name).add_trial(
        optuna.trial.create_trial(value=0.1)
    )
    run = Run(tmp_path)
    run.history.begin({"seed": 0})
    trial = trial_of(0, "complete")
    run.history.add(0, [trial.candidate])
    run.tell(trial, "never", False)
    assert [t.user_attrs["trial"] for t in read(tmp_path / "optuna.log")] == [0]


@pytest.mark.parametrize("damage", [b"no json\nno json\n", b'{"op_code": 99}\n'])
def test_a_damaged_file_is_written_anew(tmp_path, damage):
    (tmp_path / "optuna.log").write_bytes(damage)
    run = Run(tmp_path)
    run.study.catch_up()  # nothing was told
    assert (tmp_path / "optuna.log").read_bytes() == damage
    run.history.begin({"seed": 0})
    trial = trial_of(0, "complete")
    run.history.add(0, [trial.candidate])
    run.history.tell(trial)
    run.study.catch_up()
    assert len(read(tmp_path / "optuna.log")) == 1 and not run.study._failed
