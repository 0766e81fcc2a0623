"""From settings to a proposer, and back from the proposals of an interrupted run."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save_file
from searches import GOOD, ScriptedLM, half, scored_trial, three_seeds, view_of

from evaluators.errors import UserError
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro.problem import Problem
from opro.proposers.exchange import Exchanging
from opro.proposers.fallback import OrNothing
from opro.proposers.language_model import Reply, most_tokens
from opro.proposers.ledger import Ledger
from opro.proposers.lm_proposer import LMProposer
from opro.proposers.local_model import LocalModel
from opro.proposers.mixed import Mixed
from opro.proposers.open import ProposerPlan, connect, open_proposer
from opro.proposers.openai_model import Thinking
from opro.proposers.rewriter import Rewriter
from opro.proposers.shared import Shared
from opro.search.history import Candidate
from opro.settings import OptimizeSettings

PROBLEM = Problem(SPEECH_TASK, (Prompt("A or B"),), half("s", 8), half("f", 8), None, {})


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-marked")
    for name in ("OPENAI_BASE_URL", "OPRO_LM_PRICES"):
        monkeypatch.delenv(name, raising=False)


def plan_with(lm, **flags):
    settings = OptimizeSettings(**flags)
    return ProposerPlan(
        settings, PROBLEM, lm, Ledger(settings.max_tokens, settings.max_cost, lm.prices)
    )


# What is configured.


def test_what_is_configured(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="give --lm-model NAME"):
        connect(None, None, 0, None)
    with pytest.raises(UserError, match="--max-cost needs prices"):
        connect("m", None, 0, 1.0)
    monkeypatch.setenv("OPRO_LM_PRICES", "cheap")
    with pytest.raises(UserError, match="OPRO_LM_PRICES is 'cheap'; expected two numbers"):
        connect("m", None, 0, 1.0)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert connect(None, None, 0, None) is None
    with pytest.raises(UserError, match="no endpoint is configured"):
        connect("m", None, 0, None)
    with pytest.raises(UserError, match=r"directory without config\.json"):
        connect(str(tmp_path), None, 0, None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"--lm-model .* holds no safetensors file"):
        connect(str(tmp_path), None, 0, None)
    save_file({"w": np.zeros(1)}, tmp_path / "model.safetensors")
    assert isinstance(connect(str(tmp_path), None, 0, 1.0), LocalModel)


@pytest.mark.parametrize("text", ["-1,2", "1,-2", "inf,1", "1,inf", "nan,1", "1,2,3", "1", "1;2"])
def test_prices_that_are_none_are_refused(monkeypatch, text):
    monkeypatch.setenv("OPRO_LM_PRICES", text)
    with pytest.raises(UserError, match="expected two numbers"):
        connect("m", None, 0, None)


def test_prices_and_limits_that_go_together_are_taken(monkeypatch):
    assert connect("m", None, 0, None).prices is None
    assert connect("m", "https://openrouter.ai/api/v1", 0, 1.0).name == "m"
    monkeypatch.setenv("OPRO_LM_PRICES", "0,0")
    assert connect("m", None, 0, 1.0).prices == (0, 0)
    monkeypatch.setenv("OPRO_LM_PRICES", "0.15, 0.60")
    assert connect("m", "http://127.0.0.1:9/v1", 0, 1.0).prices == (0.15, 0.6)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert connect("m", "http://127.0.0.1:9/v1", 0, None).name == "m"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert connect("m", None, 0, None).name == "m"
    with pytest.raises(UserError, match="no model; give --lm-model NAME"):
        connect(None, None, 0, None)


@pytest.mark.parametrize(
    ("flags", "kind", "name"),
    [
        ({}, Mixed, "lm m and rewriter"),
        ({"proposer": "lm"}, LMProposer, "lm m"),
        ({"strategy": "opro"}, LMProposer, "lm m"),
        ({"proposer": "rewriter"}, Rewriter, "rewriter"),
        ({"strategy": "random"}, Rewriter, "rewriter"),
        ({"lm_model": None}, Rewriter, "rewriter"),
    ],
    ids=str,
)
def test_who_proposes(monkeypatch, tmp_path, flags, kind, name):
    if "lm_model" in flags:
        monkeypatch.delenv("OPENAI_API_KEY")
    plan = open_proposer(OptimizeSettings(**{"lm_model": "m", **flags}), PROBLEM)
    assert plan.name == name
    proposer = plan.resume(tmp_path / "proposals.jsonl")
    if "strategy" not in flags:  # races exchange what is reversed
        assert type(proposer) is Exchanging
        proposer = proposer.proposer
    assert type(proposer) is kind
    rewriter = getattr(proposer, "rewriter", proposer)
    if isinstance(rewriter, Rewriter):
        assert rewriter.learn == (flags.get("strategy") != "random")
    assert not list(tmp_path.iterdir())


def test_a_language_model_that_is_asked_for_and_not_configured_is_one_sentence(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="--proposer lm: no language model is configured"):
        open_proposer(OptimizeSettings(proposer="lm"), PROBLEM)


def test_only_who_could_have_a_language_model_is_told_of_it(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    for flags, told in (({}, 1), ({"proposer": "rewriter"}, 0), ({"strategy": "random"}, 0)):
        open_proposer(OptimizeSettings(**flags), PROBLEM).resume(tmp_path / "p.jsonl")
        assert capsys.readouterr().err.count("to use a language model set OPENAI_API_KEY") == told


def test_flags_say_how_much_a_model_may_think():
    plan = open_proposer(
        OptimizeSettings(lm_model="m", lm_reply_tokens=9000, lm_effort="low"), PROBLEM
    )
    assert plan.lm.thinking == Thinking(9000, "low")
    assert open_proposer(OptimizeSettings(lm_model="m"), PROBLEM).lm.thinking == Thinking()


@pytest.mark.parametrize(
    ("flags", "forgives"), [({}, True), ({"proposer": "lm"}, False), ({"strategy": "opro"}, False)]
)
def test_only_beside_the_rewriter_may_a_language_model_stay_silent(tmp_path, flags, forgives):
    proposer = open_proposer(OptimizeSettings(lm_model="m", **flags), PROBLEM).resume(
        tmp_path / "p.jsonl"
    )
    proposer = getattr(proposer, "proposer", proposer)
    assert isinstance(getattr(proposer, "lm", proposer), OrNothing) == forgives


def test_that_nothing_was_answered_is_no_call_on_resume(tmp_path):
    journal = tmp_path / "p.jsonl"
    journal.write_text(json.dumps({"iteration": 1, "unanswered": "no connection"}) + "\n")
    plan = plan_with(ScriptedLM(), proposer="lm")
    plan.resume(journal)
    assert plan.ledger == Ledger()


def test_lines_of_many_threads_stay_whole(tmp_path, seeds):
    journal = tmp_path / "p.jsonl"
    lm = ScriptedLM()
    plan = plan_with(lm, proposer="lm")
    plan.resume(journal)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(lm.on_loss, i, 1, "x" * 20_000) for i in range(40)]
        assert [job.result() for job in jobs] == [""] * 40
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sorted(line["tokens_in"] for line in lines) == list(range(40))
    assert plan.ledger.tokens_in == sum(range(40)) and plan.ledger.lost == 40


def test_shared_prompts_come_first(tmp_path):
    shared = [Candidate(Prompt("shared: A or B"), "shared:x")]
    plan = open_proposer(OptimizeSettings(proposer="rewriter"), PROBLEM, shared)
    proposer = plan.resume(tmp_path / "p.jsonl")
    assert isinstance(proposer, Shared)
    view = view_of([scored_trial(0, 0.5, 0, prompt=Prompt("A) x B) y"))])
    assert proposer.propose(view, 4)[0] == shared[0]


@pytest.mark.parametrize("swap", [False, True])
def test_settings_reach_the_language_model(tmp_path, seeds, swap):
    lm = ScriptedLM(json.dumps({"prompts": [GOOD]}))
    plan = plan_with(lm, proposer="lm", swap=swap, threshold="dev", objective="auroc", seed=3)
    (found,) = plan.resume(tmp_path / "p.jsonl").propose(three_seeds(seeds), 1)
    assert found.prompt == Prompt(GOOD, both_orders=swap)
    assert "area under the ROC curve" in lm.asked[0] and "tuned for each prompt" in lm.asked[0]


# Resumes.


def replies_of(*texts):
    return [json.dumps({"prompts": [text]}) for text in texts]


def test_what_was_paid_for_is_used_and_counted_and_not_asked_for_again(tmp_path, seeds):
    """The journal cut after every line: the same candidates, the same spending, no call twice."""
    journal = tmp_path / "p.jsonl"
    texts = ["nothing", *replies_of("Voice?\nA) voice\nB) none"), *replies_of(GOOD)]
    lm = ScriptedLM(*texts)
    plan = plan_with(lm, proposer="lm")
    whole = plan.resume(journal).propose(three_seeds(seeds), 2)
    raw = journal.read_bytes()
    assert len(whole) == 2 and raw.count(b"\n") == 3 and plan.ledger.refused == 1
    ends = [0, *(i + 1 for i, byte in enumerate(raw) if byte == 10)]
    for lines, end in enumerate(ends):
        for cut in {end, min(len(raw), end + 30)}:
            journal.write_bytes(raw[:cut])
            again = ScriptedLM(*texts[lines:])
            resumed = plan_with(again, proposer="lm")
            assert resumed.resume(journal).propose(three_seeds(seeds), 2) == whole
            assert again.asked == lm.asked[lines:]
            if cut == end:
                assert resumed.ledger == plan.ledger and journal.read_bytes() == raw


@pytest.mark.parametrize("missing", [1, 40])
def test_a_reply_whose_record_was_cut_short_counts_at_its_worst_case_and_once(
    tmp_path, seeds, missing
):
    """It was paid for; what it was is lost, so it is asked for again."""
    journal = tmp_path / "p.jsonl"
    texts = ["nothing", *replies_of(GOOD)]
    lm = ScriptedLM(*texts)
    lm.prices = (1.0, 2.0)
    plan = plan_with(lm, proposer="lm")
    whole = plan.resume(journal).propose(three_seeds(seeds), 1)
    journal.write_bytes(journal.read_bytes()[:-missing])
    worst_in, worst_out = most_tokens(lm.asked[1]), lm.options[1][2]
    for replies in (texts[1:], []):  # once more, and the journal says all of it
        again = ScriptedLM(*replies)
        again.prices = lm.prices
        resumed = plan_with(again, proposer="lm")
        assert resumed.resume(journal).propose(three_seeds(seeds), 1) == whole
        assert again.asked == lm.asked[2 - len(replies) :]
        ledger = resumed.ledger
        assert (ledger.calls, ledger.lost, ledger.refused) == (2, 1, plan.ledger.refused)
        assert ledger.tokens_in == plan.ledger.tokens_in + worst_in
        assert ledger.tokens_out == plan.ledger.tokens_out + worst_out
        assert ledger.cost == pytest.approx(plan.ledger.cost + (worst_in + 2 * worst_out) / 1e6)
    assert sum("lost" in line for line in journal.read_text().splitlines()) == 1


def test_a_call_that_was_never_made_is_not_counted_though_its_record_was_cut_short(tmp_path, seeds):
    """Where the limit left no room for it: what was cut short says that it was not made."""
    journal = tmp_path / "p.jsonl"
    plan = plan_with(ScriptedLM(), proposer="lm", max_tokens=300)
    assert plan.resume(journal).propose(three_seeds(seeds), 1) == []
    journal.write_bytes(journal.read_bytes()[:-5])
    resumed = plan_with(ScriptedLM(), proposer="lm", max_tokens=300)
    assert resumed.resume(journal).propose(three_seeds(seeds), 1) == []
    assert resumed.ledger == plan.ledger and plan.ledger.lost == 0


def test_calls_without_a_reply_are_journalled_and_charged_again_on_resume(tmp_path):
    journal = tmp_path / "p.jsonl"
    lm = ScriptedLM()
    lm.prices = (1e4, 1e5)
    plan = plan_with(lm, proposer="lm", max_cost=8.0)
    plan.resume(journal)
    assert lm.on_loss(100, 20, "the line went dead") == ""
    assert "--max-cost 8.0" in lm.on_loss(100, 20, "again")
    assert (plan.ledger.lost, plan.ledger.cost) == (2, pytest.approx(6.0))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert lines[0] == {
        "lost": "the line went dead",
        "tokens_in": 100,
        "tokens_out": 20,
        "cost": 3.0,
    }
    resumed = plan_with(lm, proposer="lm", max_cost=8.0)
    resumed.resume(journal)
    assert resumed.ledger == plan.ledger


LINE = {
    "iteration": 1,
    "call": 0,
    "meta_prompt": "x",
    "refused": [],
    "finish": "stop",
    "model": "m",
}
LINE |= {"reply": "", "tokens_in": 3, "tokens_out": 4, "cost": 0.1}


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "[]",
            "5",
            "\udcff",
            '"reply"',
            "{",
            "{}",
            '{"reply": "x"}',
            '{"lost": "x"}',
            "\x00",
            "null",
        ),
        *(
            json.dumps(LINE | {name: value})
            for name in ("tokens_in", "tokens_out", "cost")
            for value in (-1, "3", math.nan, math.inf)
        ),
        json.dumps(LINE | {"meta_prompt": []}),
        json.dumps({"lost": "x", "tokens_in": -5, "tokens_out": 1, "cost": 0}),
    ],
)
def test_a_damaged_line_of_proposals_stops_the_run_for_what_it_cost_is_unknown(
    tmp_path, seeds, line
):
    journal = tmp_path / "p.jsonl"
    lm = ScriptedLM(*replies_of(GOOD))
    plan_with(lm, proposer="lm").resume(journal).propose(three_seeds(seeds), 1)
    whole = journal.read_bytes()
    journal.write_bytes(whole + line.encode(errors="surrogateescape") + b"\n" + whole)
    before = journal.read_bytes()
    sentence = r"p\.jsonl:2: damaged line .*spent .*restore the file, or give another --name$"
    with pytest.raises(UserError, match=sentence) as caught:
        plan_with(ScriptedLM(), proposer="lm").resume(journal)
    assert "\n" not in str(caught.value) and journal.read_bytes() == before


def test_a_reply_that_is_no_text_of_any_file_survives_the_journal(tmp_path, seeds):
    journal = tmp_path / "p.jsonl"
    odd = "\ud800 \u2028 \n" + json.dumps({"prompts": [GOOD]})
    whole = plan_with(ScriptedLM(odd), proposer="lm").resume(journal).propose(three_seeds(seeds), 1)
    assert journal.read_bytes().isascii() and journal.read_bytes().count(b"\n") == 1
    resumed = plan_with(ScriptedLM(), proposer="lm").resume(journal)
    assert resumed.propose(three_seeds(seeds), 1) == whole


def test_an_unknown_cost_is_none_and_counts_nothing(tmp_path):
    journal = tmp_path / "p.jsonl"
    journal.write_text(json.dumps(LINE | {"cost": None}) + "\n")
    plan = plan_with(ScriptedLM(), proposer="lm")
    plan.resume(journal)
    assert (plan.ledger.calls, plan.ledger.cost, plan.ledger.tokens_in) == (1, 0.0, 3)
    assert not math.isnan(plan.ledger.cost) and Reply("", 3, 4, None, "m", "stop").cost is None


@pytest.mark.parametrize(
    "line",
    ["", "[]", "5", "{", "{}", '{"begun": [1, 0]}', '{"begun": 1, "tokens_in": 1, "tokens_out": 1}', '{"ended": "x"}',
     '{"begun": [1, 0], "tokens_in": -1, "tokens_out": 1}',
     '{"begun": [1, 0], "tokens_in": Infinity, "tokens_out": 1}'],
)  # fmt: skip
def test_a_damaged_line_of_calls_stops_the_run_for_what_it_cost_is_unknown(tmp_path, line):
    (tmp_path / "calls.jsonl").write_text('{"ended": [1, 0]}\n' + line + "\n")
    with pytest.raises(
        UserError,
        match=r"calls\.jsonl:2: damaged line .* spent .*: restore the file, or give another",
    ):
        plan_with(ScriptedLM(), proposer="lm").resume(tmp_path / "p.jsonl")
