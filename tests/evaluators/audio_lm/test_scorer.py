"""The evaluator equals the stock model, and a score depends on nothing but its prompt and clip."""

import contextlib
import shutil
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import evaluator_with, noise, random_model, stock_scores

from evaluators.audio import DECODERS
from evaluators.audio_lm.answer_tokens import PromptError, find_answers
from evaluators.audio_lm.checkpoint import POCKET, SelfTest, open_checkpoint
from evaluators.audio_lm.decoder import side_by_side
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.generic import GenericScorer
from evaluators.audio_lm.loading import stock_model
from evaluators.audio_lm.memory import Shape
from evaluators.audio_lm.packing import (
    AnswerReads,
    CacheSegment,
    lay_out_prefixes,
    pack,
    pack_prompt,
)
from evaluators.audio_lm.prefixes import KVRing
from evaluators.audio_lm.scorer import AudioScorer, _Results
from evaluators.audio_lm.selftest import score_made_up
from evaluators.audio_lm.stock import StockModel
from evaluators.audio_lm.templates import encode
from evaluators.clips import clip_wave
from evaluators.errors import DeviceLostError, PauseError, UserError
from evaluators.evaluator import Usage
from evaluators.presentation import Presentation
from evaluators.prompts import Prompt
from evaluators.splits import balanced_order

pytestmark = pytest.mark.tiny
CLOSE = 1e-5  # nats, float32


@pytest.fixture(scope="module", params=["pocket-base", "pocket-lora"])
def evaluator(request):
    return AudioScorer(open_checkpoint(request.param), "cpu", "float32")


def evaluator_of(checkpoint):
    return AudioScorer(checkpoint, "cpu", "float32")


# What happens beside the language model is the same with an adapter: its quicker case is the base.
MOSTLY_BASE = pytest.mark.parametrize(
    "evaluator",
    ["pocket-base", pytest.param("pocket-lora", marks=pytest.mark.slow)],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def clips(dev_clips):
    return balanced_order(dev_clips)[:20]


ASKED = [
    Prompt("Is it speech?\nA) yes\nB) no"),
    Prompt("A or B?", system="Listen."),
    # No letter beside these: it would outweigh them, and nobody could tell how they are scored.
    Prompt("?", (("SPEECH", ("human speech",)), ("NONSPEECH", ("other sounds", "animal noise")))),
    Prompt("One word.", (("SPEECH", ("B", "someone is talking")), ("NONSPEECH", ("A", "C")))),
    Prompt("Is anybody talking here, or is it music, an animal, or noise? Say A or B. " * 2),
    *(Prompt("A or B, then?", system=f"You are judge {n}.") for n in range(4)),
]


@pytest.fixture(scope="module")
def small(clips, tmp_path_factory):
    """(model, processor, clips of six lengths, what the stock forward gives ``[member, prompt, clip, label]``)."""
    model, processor = random_model(1)
    folder = tmp_path_factory.mktemp("small")
    made = [
        noise(folder, clips[0], n, s) for n, s in enumerate([3200, 8000, 4801, 8000, 15999, 5120])
    ]
    made.append(replace(made[1], audio="silence"))
    stock = StockModel(model, processor, torch.device("cpu"))
    truth = np.array([[stock_scores(stock, p, c) for c in made] for p in ASKED])
    return model, processor, made, np.moveaxis(truth, 2, 0)


def apart(table, truth, rows=slice(None), columns=slice(None)):
    """Largest difference of both members from the stock forward."""
    expected = truth[:, rows][:, :, columns]
    assert table.logp.shape == table.logp_top.shape == expected.shape[1:]
    return max(np.abs(table.logp - expected[0]).max(), np.abs(table.logp_top - expected[1]).max())


def test_every_kind_of_prompt_on_every_length_equals_the_stock_forward_in_both_members(small):
    model, processor, clips, truth = small
    table = evaluator_with(model, processor).score(ASKED, clips)
    assert apart(table, truth) < 1e-4
    assert table.prompts == tuple(ASKED) and table.clips == tuple(clips)
    assert np.ptp(truth[0], 1).min() > 1e-3 and np.ptp(truth[0], 2).min() > 1e-3  # both matter
    assert (truth[0] - truth[1]).max() > 0.1  # so do the members


calls_of = st.lists(
    st.tuples(
        st.lists(st.sampled_from(range(len(ASKED))), min_size=1, max_size=6),
        st.lists(st.sampled_from(range(7)), min_size=1, max_size=8),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)
shapes = st.builds(
    Shape, st.sampled_from([60, 100, 768]), st.sampled_from([10, 48]), st.sampled_from([8, 30, 256])
)


@settings(max_examples=15, deadline=None)
@given(calls_of, shapes)
def test_no_order_company_shape_or_earlier_call_changes_a_score(small, calls, shape):
    model, processor, clips, truth = small
    evaluator = evaluator_with(model, processor, shape)
    for rows, columns, forget in calls:
        if forget:
            evaluator.forget()
        table = evaluator.score([ASKED[r] for r in rows], [clips[c] for c in columns])
        assert apart(table, truth, rows, columns) < 1e-4
    assert evaluator.forwards == sum(len(rows) * len(columns) for rows, columns, _ in calls)


def test_sixty_clips_of_one_length_are_each_scored_as_alone(small, clips, tmp_path):
    model, processor, *_ = small
    many = [noise(tmp_path, clips[0], 100 + n, 16000) for n in range(60)]
    evaluator = evaluator_with(model, processor)
    table = evaluator.score(ASKED[2:3], many)
    stock = StockModel(model, processor, torch.device("cpu"))
    truth = np.array([[stock_scores(stock, ASKED[2], c) for c in many]])
    assert apart(table, np.moveaxis(truth, 2, 0)) < 1e-4
    again = evaluator.score(ASKED[2:3], many[::-1])
    assert np.abs(again.logp[:, ::-1] - table.logp).max() < CLOSE


@pytest.mark.parametrize("places", [1023, 1024, 1025, 2048])
def test_keys_and_values_that_just_fill_the_memory_kept_for_them_stay_whole(
    small, clips, tmp_path, places
):
    model, processor, *_ = small
    system = len(encode(processor.tokenizer, QWEN2_AUDIO.template.before(ASKED[1].system)))
    whole, rest = divmod(places - system, 25)
    lengths = [16000] * whole + [640 * rest] * (rest > 0)  # 640 samples a token
    many = [noise(tmp_path, clips[0], 200 + n, samples) for n, samples in enumerate(lengths)]
    evaluator = evaluator_with(model, processor)
    table = evaluator.score(ASKED[1:2], many)
    last = many[-6:]
    again = evaluator.score(ASKED[1:2], last)  # after all was written
    evaluator.forget()
    alone = evaluator.score(ASKED[1:2], last)
    assert np.abs(table.logp[:, -6:] - alone.logp).max() < CLOSE
    assert np.abs(again.logp - alone.logp).max() < CLOSE


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)), min_size=1, max_size=4))
def test_weights_side_by_side_are_the_weights_wherever_they_lie(places):
    store = torch.arange(48.0).view(16, 3)
    for copy in (False, True):
        weights = [store[a : a + n].clone() if copy else store[a : a + n] for a, n in places]
        assert torch.equal(side_by_side(weights), torch.cat(weights))
    adjacent = [store[2:5], store[5:6], store[6:9]]
    assert side_by_side(adjacent).data_ptr() == store[2:].data_ptr()  # nothing is stored twice


def test_a_step_that_keeps_no_token_returns_no_state(small):
    """As of clips, of which keys and values are wanted alone."""
    model, processor, *_ = small
    decoder = evaluator_with(model, processor).decoder
    ring = KVRing(decoder)
    ring.reserve(3, 1000)
    layout = lay_out_prefixes([3], CacheSegment(0, 0), ring.take(3), ring.spare)
    batch = pack(np.array([1, 2, 3]), layout, size=8, kept=4, device=decoder.device)
    with torch.inference_mode():
        assert len(decoder.step(batch, ring.layers)) == 0
    assert all(layer.keys[:3].abs().sum(1).min() > 0 for layer in ring.layers)


def test_layers_that_are_not_plain_ones_are_called_as_they_are(clips, tmp_path):
    class Louder(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 1.5 * self.inner(x) + 0.1

    model, processor = random_model(1)
    for layer in model.model.language_model.layers[:2]:
        attention, mlp = layer.self_attn, layer.mlp
        attention.k_proj, attention.o_proj = Louder(attention.k_proj), Louder(attention.o_proj)
        mlp.up_proj = Louder(mlp.up_proj)
    clip = noise(tmp_path, clips[0], 1, 6000)
    table = evaluator_with(model, processor).score(ASKED[:1], [clip])
    truth = stock_scores(StockModel(model, processor, torch.device("cpu")), ASKED[0], clip)
    assert apart(table, truth[:, None, None]) < 1e-4


def test_what_was_heard_is_kept_until_it_is_forgotten_and_equal_content_is_heard_once(small):
    model, processor, clips, truth = small
    evaluator, runs = evaluator_with(model, processor), []
    hook = model.model.audio_tower.layer_norm.register_forward_hook(lambda *about: runs.append(1))
    try:
        twice = [clips[0], replace(clips[0], clip_id="the same")]
        evaluator.score(ASKED[:1], twice)
        assert len(runs) == 1
        evaluator.score(ASKED, [clips[0]])
        assert len(runs) == 1
        evaluator.score(ASKED[:1], [clips[0], clips[6], clips[1]])  # silence is another content
        assert len(runs) == 2  # both of one length: heard together
        for drop in (evaluator.forget, evaluator.release):
            drop()
            assert apart(evaluator.score(ASKED[:1], clips[:1]), truth, [0], [0]) < 1e-4
        assert len(runs) == 4
    finally:
        hook.remove()


def test_silence_of_one_length_goes_through_the_model_once_and_scores_as_it_does_alone(clips):
    first, second, *_, longest = sorted(clips, key=lambda clip: clip.duration_ms)
    three = first, second, longest
    assert [c.duration_ms for c in three] == [200, 200, 1000]
    heard = [replace(c, audio=a) for c in three for a in ("silence", "shuffled", "recorded")]
    how = Presentation(repeat_to_ms=400, pad_to_ms=600)
    prompts = [ASKED[0], replace(ASKED[1], presentation=how)]
    evaluator = evaluator_of(open_checkpoint("pocket-base"))
    alone = [evaluator.score(prompts, [clip]) for clip in heard]  # as where nothing is one sound
    before = evaluator.about().work
    evaluator.forget()
    table = evaluator.score(prompts, heard)
    assert table.clips == tuple(heard) and table.prompts == tuple(prompts)
    for member in ("logp", "logp_top"):
        expected = np.concatenate([getattr(one, member) for one in alone], axis=1)
        assert np.array_equal(getattr(table, member), expected)
    assert len(np.unique(table.logp[0, :, 0])) == 8
    work = evaluator.about().work
    assert (before.evals, work.evals) == (2 * 9, 2 * (9 + 8))
    assert work.flop / before.flop == pytest.approx(work.evals / before.evals)
    assert evaluator.usage == Usage(4 * 9, 0, 4 * 9)  # answered
    assert np.array_equal(evaluator.score(prompts, heard[::3]).logp, table.logp[:, ::3])
    assert evaluator.about().work.evals == work.evals + 2 * 2


@contextlib.contextmanager
def failing_head(model, fault):
    """The stock head, before which `fault(rows)` is called; yields how many rows it saw each time."""
    seen = []

    def before(module, inputs):
        seen.append(len(inputs[0]))
        fault(len(inputs[0]))

    hook = model.lm_head.register_forward_pre_hook(before)
    try:
        yield seen
    finally:
        hook.remove()


def out_of_memory(rows, more_than=0):
    if rows > more_than:
        raise torch.OutOfMemoryError("pretended")


def test_batches_are_halved_until_they_fit_and_the_next_call_begins_with_whole_ones(small):
    model, processor, clips, truth = small
    evaluator = evaluator_with(model, processor)
    with failing_head(model, lambda rows: out_of_memory(rows, 20)) as seen:
        assert apart(evaluator.score(ASKED[:4], clips), truth, range(4)) < 1e-4
        assert list(dict.fromkeys(seen)) == [48, 24, 12] and set(seen[seen.index(12) :]) == {12}
        assert evaluator.shape == Shape(192, 12, 256)
        evaluator.score(ASKED[:1], clips)
        assert evaluator.shape == Shape(192, 12, 256)
    assert apart(evaluator.score(ASKED[:2], clips), truth, range(2)) < 1e-4
    assert evaluator.shape == Shape(768, 48, 256)


@pytest.mark.parametrize(
    ("tokens", "sizes"),
    [(768, [48, 24, 12, 6]), (256, [48, 24]), (129, [48, 24]), (128, [48]), (100, [48])],
)
def test_memory_that_no_batch_finds_pauses_after_the_smallest(small, tokens, sizes):
    model, processor, clips, _ = small
    evaluator = evaluator_with(model, processor, Shape(tokens, 48, 256))
    with (
        failing_head(model, out_of_memory) as seen,
        pytest.raises(PauseError, match="out of memory even with the smallest batches") as caught,
    ):
        evaluator.score(ASKED[1:2], clips[:1])
    assert list(dict.fromkeys(seen)) == sizes
    assert type(caught.value) is PauseError and evaluator.forwards == 0


def raising(error):
    def fault(rows):
        raise error

    return fault


def test_a_lost_device_is_named_and_other_faults_are_not_taken_for_one(small):
    model, processor, clips, _ = small
    evaluator = evaluator_with(model, processor)
    lost = [RuntimeError("CUDA error: an illegal access\nmore lines")]
    if hasattr(torch, "AcceleratorError"):
        lost.append(torch.AcceleratorError("gone"))
    for error in lost:
        with (
            failing_head(model, raising(error)),
            pytest.raises(DeviceLostError, match=r"lost .*(illegal access|gone)") as caught,
        ):
            evaluator.score(ASKED[:1], clips[:1])
        assert "more lines" not in str(caught.value)
    with (
        failing_head(model, raising(RuntimeError("shape"))),
        pytest.raises(RuntimeError, match="shape"),
    ):
        evaluator.score(ASKED[:1], clips[:1])
    assert evaluator.score(ASKED[:1], clips[:1]).logp.shape == (1, 1, 2)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_score_that_is_no_number_names_its_prompt_and_clip(small):
    model, processor, clips, _ = small
    evaluator = evaluator_with(model, processor)
    hook = model.lm_head.register_forward_hook(lambda module, inputs, out: out * float("nan"))
    try:
        with pytest.raises(UserError, match=f"{ASKED[1].prompt_id}.*'noise 2' gave NaN"):
            evaluator.score(ASKED[1:3], clips[2:4])
    finally:
        hook.remove()
    assert evaluator.forwards == 0


def test_answers_that_do_not_fit_a_batch_together_are_scored_in_parts_and_one_too_long_is_refused(
    small,
):
    model, processor, clips, truth = small
    tokenizer = processor.tokenizer
    for row in (1, 2):
        groups = find_answers(tokenizer, ASKED[row]).sequences
        extra = sum(len(s) - 1 for group in groups for s in group)
        tokens = len(encode(tokenizer, QWEN2_AUDIO.template.after(ASKED[row].text))) + extra
        longest = max(len(s) - 1 for group in groups for s in group)
        alone = tokens - extra + longest
        shapes = [Shape(tokens, 48, 256), Shape(768, extra + 1, 256)]  # just together
        shapes += [Shape(alone, 48, 256), Shape(768, longest + 1, 256)]  # just one by one
        for shape in shapes:
            table = evaluator_with(model, processor, shape).score(ASKED[row : row + 1], clips)
            assert apart(table, truth, [row]) < 1e-4
        for shape in (Shape(alone - 1, 48, 256), Shape(768, longest, 256)):
            with pytest.raises(PromptError, match="prompt 1 of this call has"):
                evaluator_with(model, processor, shape).score(ASKED[row : row + 1], clips)


def test_a_pair_of_which_a_part_is_there_begins_anew_and_no_other():
    results = _Results([2, 1], 2, 2)

    def enter(prompt, clip, label, value):
        cells = np.array([[prompt, clip, label]])
        results.add(torch.tensor([value]), AnswerReads(*np.zeros((3, 1), int), cells))

    enter(0, 0, 0, -1.0)
    enter(0, 1, 0, -1.0)
    enter(0, 1, 1, -2.0)
    enter(1, 0, 1, -3.0)
    results.drop(done=False)
    assert results.done.tolist() == [[False, True], [True, False]]
    assert np.isinf(results.logp[0, 0]).all() and results.logp[0, 1].tolist() == [-1, -2]
    enter(0, 0, 0, -1.0)  # not twice
    results.finish()
    assert results.logp[0, 0, 0] == -1
    results.drop(done=True)
    assert np.isinf(results.logp).all() and not results.done.any()


def test_a_load_that_gives_other_scores_than_were_written_is_refused(seeds, clips):
    base = open_checkpoint("pocket-base")
    written = score_made_up(evaluator_of(base), seeds[0])
    good = evaluator_of(replace(base, self_test=SelfTest(seeds[0], "float32", written)))
    good.score(seeds[:1], clips[:2])
    assert good.forwards == 2  # the test itself is not counted
    other = tuple((a + 1, *rest) for a, *rest in written)
    bad = replace(base, self_test=SelfTest(seeds[0], "float32", other))
    with pytest.raises(UserError, match="does not load as the model that was trained"):
        evaluator_of(bad).score(seeds[:1], clips[:2])
    loaded = (stock_model(good.decoder.model), good.processor)
    AudioScorer(bad, "cpu", "float32", loaded=loaded).score(
        seeds[:1], clips[:1]
    )  # not of its files


def fingerprint(monkeypatch=None, dtype="bfloat16", gib=None, device=None, **options):
    """A fingerprint of the shipped base checkpoint with one thing changed."""
    kind = options.pop("quantization", "none")
    checkpoint = replace(open_checkpoint(options.pop("name", "pocket-base")), quantization=kind)
    constants = {k: options.pop(k) for k in ("scorer", "front_end") if k in options}
    evaluator = AudioScorer(checkpoint, "cpu", dtype, **options)
    if gib is not None:
        monkeypatch.setattr("evaluators.audio_lm.scorer.card_gib", lambda device: gib)
    for name, value in constants.items():
        monkeypatch.setattr(f"evaluators.audio_lm.scorer.{name.upper()}", value)
    if device is not None:
        evaluator.device = torch.device(device)
    try:
        return evaluator.fingerprint
    finally:
        if monkeypatch is not None:
            monkeypatch.undo()


def test_each_part_that_can_change_a_score_changes_the_fingerprint(monkeypatch):
    prints = [
        fingerprint(),
        fingerprint(name="pocket-lora"),
        fingerprint(dtype="float32"),
        fingerprint(dtype="float32", name="pocket-lora"),
        fingerprint(dtype="float32", quantization="nf4"),
        fingerprint(dtype="float32", device="mps"),
        fingerprint(device="mps"),
        fingerprint(monkeypatch, dtype="float32", scorer="next"),
        # bf16 rounds by the shape of a batch, and so does what 4-bit weights are expanded to.
        fingerprint(shape=Shape(767, 48, 256)),
        fingerprint(shape=Shape(768, 47, 256)),
        fingerprint(shape=Shape(768, 48, 255)),
        fingerprint(quantization="nf4"),
        fingerprint(monkeypatch, gib=80.0, quantization="nf4"),
        fingerprint(monkeypatch, front_end="next"),
    ]
    assert len(set(prints)) == len(prints) and all(len(p) == 64 for p in prints)


def test_what_cannot_change_a_score_keeps_the_fingerprint(monkeypatch, tmp_path):
    exact = fingerprint(dtype="float32")
    assert fingerprint(dtype="auto") == exact  # float32 on a CPU
    assert fingerprint(dtype="float32", shape=Shape(100, 9, 64)) == exact
    assert fingerprint(dtype="float32", features=tmp_path) == exact
    assert fingerprint(shape=Shape(768, 48, 256)) == fingerprint() == fingerprint(dequantize=True)
    four = fingerprint(quantization="nf4")
    assert fingerprint(monkeypatch, gib=80.0, quantization="nf4", dequantize=False) == four
    expanded = fingerprint(monkeypatch, gib=80.0, quantization="nf4", dequantize=True)
    assert fingerprint(monkeypatch, gib=80.0, quantization="nf4") == expanded


class Kernels:
    VERSION = "triton 9.9"


VERSIONS = {  # what is put in its place -> whether that is another key for the base, the adapter, and 4 bits
    "torch": ("torch.__version__", "2.99.0", (True, True, True)),
    "transformers": ("importlib.metadata.version", "transformers", (True, True, True)),
    "tokenizers": ("importlib.metadata.version", "tokenizers", (True, True, True)),
    "peft": ("importlib.metadata.version", "peft", (False, True, False)),
    "bitsandbytes": ("importlib.metadata.version", "bitsandbytes", (False, False, True)),
    "numpy": ("importlib.metadata.version", "numpy", (False, False, False)),
    "libsndfile": ("evaluators.audio.DECODERS", "libsndfile", (True, True, True)),
    "soxr": ("evaluators.audio.DECODERS", "soxr", (True, True, True)),
    "kernels": (
        "evaluators.audio_lm.scorer.load_kernels",
        lambda device: Kernels,
        (True, True, True),
    ),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_a_library_that_a_score_may_depend_on_is_a_part_of_the_fingerprint(name, monkeypatch):
    place, value, expected = VERSIONS[name]
    asked = ({}, {"name": "pocket-lora"}, {"quantization": "nf4"})
    before = [fingerprint(**options) for options in asked]
    if place.endswith("version"):
        real = metadata.version
        monkeypatch.setattr(place, lambda n: "99" if n == value else real(n))
    elif place.endswith("DECODERS"):
        monkeypatch.setitem(DECODERS, value, "99")
    else:
        monkeypatch.setattr(place, value)
    after = [fingerprint(**options) for options in asked]
    assert tuple(a != b for a, b in zip(before, after, strict=True)) == expected


def test_what_a_scorer_runs_on_names_the_libraries_of_its_fingerprint():
    versions = AudioScorer(open_checkpoint("pocket-lora"), "cpu").about().versions
    assert versions["torch"] == torch.__version__ and versions["kernels"] == "torch"
    assert set(versions) == {
        "torch", "transformers", "tokenizers", "peft", "libsndfile", "soxr", "kernels",
    }  # fmt: skip
    assert all(value not in ("", "none") for value in versions.values())


def test_stored_features_of_other_libraries_are_not_taken(evaluator, clips, tmp_path, monkeypatch):
    def store():
        return FeatureStore(tmp_path, evaluator.processor.feature_extractor)

    one = store()
    decoded = one.decode(clips[0])
    one.keep(decoded, one.log_mel([decoded.wave])[0])
    assert store().decode(clips[0]).mel is not None
    monkeypatch.setitem(DECODERS, "soxr", "99")
    assert store().decode(clips[0]).mel is None


@pytest.mark.parametrize(
    ("evaluator", "count"),
    [
        pytest.param("pocket-base", 20, marks=pytest.mark.slow),
        pytest.param("pocket-lora", 20, marks=pytest.mark.slow),  # has the base's weights
        ("pocket-lora", 5),
    ],
    indirect=["evaluator"],
    scope="module",
)
def test_pairs_equal_the_stock_forward_and_constrained_generation(
    evaluator, seeds, heldout, clips, count
):
    prompts, clips = [*seeds, *heldout[:7]], clips[:count]
    pairs = len(prompts) * count
    stock = StockModel(
        stock_model(evaluator.decoder.model), evaluator.processor, torch.device("cpu")
    )
    table = evaluator.score(prompts, clips)
    worst, near_ties, agree = 0.0, 0, 0
    for p, prompt in enumerate(prompts):
        answers = find_answers(evaluator.processor.tokenizer, prompt)
        for c, clip in enumerate(clips):
            logp = stock.logp(prompt, clip)
            for k, group in enumerate(answers.sequences):
                ids = [s[0] for s in group]
                worst = max(
                    worst,
                    abs(float(logp[ids].logsumexp(0)) - table.logp[p, c, k]),
                    abs(float(logp[ids].max()) - table.logp_top[p, c, k]),
                )
            allowed = logp[list(answers.allowed)]
            if float(allowed.topk(2).values.diff().abs()) < 1e-3:
                near_ties += 1
                continue
            picked = stock.generate(prompt, clip, answers.allowed)
            agree += picked in [s[0] for s in answers.sequences[int(table.logp_top[p, c].argmax())]]
    print(
        f"{evaluator.checkpoint.name}: {pairs} pairs, largest difference {worst:.1e} nats, {near_ties}"
        f" near ties, {agree} of {pairs - near_ties} labels equal"
    )
    assert len(clips) == count and near_ties < pairs / 10
    assert worst < 1e-4
    assert agree == pairs - near_ties


@MOSTLY_BASE
def test_one_by_one_equals_all_at_once(evaluator, seeds, heldout, clips):
    prompts = [*seeds, *heldout[:3]]
    whole = evaluator.score(prompts, clips).logp
    for p in (0, 4):
        for c in (0, 7, 13):
            evaluator.forget()
            assert np.array_equal(evaluator.score([prompts[p]], [clips[c]]).logp[0, 0], whole[p, c])


@MOSTLY_BASE
def test_permuted_clips_and_prompts_give_permuted_scores(evaluator, seeds, clips):
    whole = evaluator.score(seeds, clips).logp
    order = np.random.default_rng(0).permutation(len(clips))
    evaluator.forget()
    turned = evaluator.score(seeds[::-1], [clips[i] for i in order]).logp
    assert np.abs(turned[::-1] - whole[:, order]).max() < CLOSE


def test_answers_of_several_tokens_are_scored_as_full_sequences(evaluator, clips):
    prompt = Prompt(
        "Is it speech or something else?",
        (("SPEECH", ("human speech",)), ("NONSPEECH", ("other sounds", "B"))),
    )
    tokenizer = evaluator.processor.tokenizer
    answers = find_answers(tokenizer, prompt)
    assert max(len(s) for group in answers.sequences for s in group) > 1
    table = evaluator.score([prompt], clips[:3])
    stock = StockModel(
        stock_model(evaluator.decoder.model), evaluator.processor, torch.device("cpu")
    )
    for c, clip in enumerate(clips[:3]):
        for k, group in enumerate(answers.sequences):
            parts = []
            for sequence in group:
                inputs = stock.inputs(prompt, clip)
                ids = torch.cat(
                    [inputs["input_ids"], torch.tensor([sequence[:-1]], dtype=torch.long)], 1
                )
                inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                with torch.inference_mode():
                    logp = stock.model(**inputs).logits[0].log_softmax(-1)
                parts.append(
                    sum(logp[len(logp) - len(sequence) + i, t] for i, t in enumerate(sequence))
                )
            assert float(torch.stack(parts).logsumexp(0)) == pytest.approx(
                float(table.logp[0, c, k]), abs=1e-4
            )


def test_long_answers_cost_their_extra_tokens_only(evaluator, seeds):
    tokenizer = evaluator.processor.tokenizer
    suffix = encode(tokenizer, QWEN2_AUDIO.template.after(seeds[0].text))
    long = replace(
        seeds[0],
        answers=(("SPEECH", ("human speech",)), ("NONSPEECH", ("other sounds", "B"))),
    )
    found = find_answers(tokenizer, long)
    extra = sum(len(s) - 1 for group in found.sequences for s in group)
    assert extra > 0
    assert len(pack_prompt(0, suffix, found).ids) == len(suffix) + extra
    letters = find_answers(tokenizer, seeds[0])
    assert len(pack_prompt(0, suffix, letters).ids) == len(suffix)


def test_lora_added_to_the_weights_is_the_same_model(clips, seeds, heldout):
    """In float32 to rounding; in bf16 no farther from the float32 truth than LoRA beside the weights."""
    from evaluators.audio_lm.loading import load_model

    checkpoint = open_checkpoint("pocket-lora")
    prompts, clips = [*seeds, *heldout[:2]], clips[:8]

    def share(dtype, merged):
        model = load_model(checkpoint, QWEN2_AUDIO, torch.device("cpu"), getattr(torch, dtype))
        if not merged:
            keep_lora(model)
        e = AudioScorer(
            checkpoint, "cpu", dtype, loaded=(model, evaluator_of(checkpoint).processor)
        )
        logp = e.score(prompts, clips).logp
        return np.exp(logp - np.logaddexp.reduce(logp, -1, keepdims=True))[..., 0]

    def keep_lora(model):
        model.model.named_children = lambda: iter(())  # nothing to merge is found

    truth = share("float32", False)
    assert np.abs(share("float32", True) - truth).max() < 1e-5
    beside = np.abs(share("bfloat16", False) - truth)
    added = np.abs(share("bfloat16", True) - truth)
    print(f"bf16 to float32, P(A): LoRA beside {beside.mean():.2e}, added {added.mean():.2e} mean")
    assert added.mean() < 1.5 * beside.mean() + 1e-4


@MOSTLY_BASE
def test_answers_and_the_rest_of_the_vocabulary_sum_to_one(evaluator, seeds, clips):
    table = evaluator.score(seeds, clips)
    assert (table.outside >= -1e-5).all() and (table.outside <= 1).all()
    assert np.allclose(np.exp(table.logp).sum(-1) + table.outside, 1, atol=1e-6)


@MOSTLY_BASE
def test_audio_reaches_the_model(evaluator, seeds, clips):
    played = evaluator.score(seeds[:1], clips).logp
    for control in ("silence", "shuffled"):
        other = evaluator.score(seeds[:1], [replace(c, audio=control) for c in clips]).logp
        assert np.abs(other - played).max() > 0.1
    silent = [clip_wave(replace(c, audio="silence")) for c in clips[:1]]
    assert not np.any(silent[0])


def test_features_are_those_of_the_processor_to_the_bit(evaluator, clips):
    extractor = evaluator.processor.feature_extractor
    waves = [clip_wave(clip) for clip in clips]
    waves += [waves[0][:samples] for samples in (1, 160, 161, 2345, 3199)]
    together = FeatureStore(None, extractor).log_mel(waves)  # of all lengths at once
    for wave, mel in zip(waves, together, strict=True):
        whole = extractor([wave], sampling_rate=16000, return_tensors="np")["input_features"][0]
        frames = -(-len(wave) // 160)
        assert mel.shape[1] == min(frames + 8, whole.shape[-1])
        assert np.array_equal(mel, whole[:, : mel.shape[1]])


@MOSTLY_BASE
def test_features_kept_on_disk_change_nothing_and_a_torn_file_is_made_anew(
    evaluator, seeds, clips, tmp_path
):
    whole = evaluator.score(seeds[:1], clips).logp
    loaded = (stock_model(evaluator.decoder.model), evaluator.processor)
    for turn in range(3):
        again = AudioScorer(evaluator.checkpoint, "cpu", features=tmp_path, loaded=loaded)
        assert np.array_equal(again.score(seeds[:1], clips).logp, whole)
        files = sorted(tmp_path.rglob("*.npy"))
        assert len(files) == len(clips) and not list(tmp_path.rglob("*.tmp*"))
        if turn == 1:
            files[0].write_bytes(files[0].read_bytes()[:50])


@pytest.mark.parametrize("milliseconds", [200, 210, 300, 310, 505, 995, 1000])
def test_odd_lengths_equal_the_stock_forward(evaluator, seeds, clips, tmp_path, milliseconds):
    path = tmp_path / "odd.wav"
    wave = np.random.default_rng(milliseconds).normal(0, 0.1, milliseconds * 16).astype(np.float32)
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    clip = replace(clips[0], path=path, sha256=f"odd{milliseconds}", clip_id="odd")
    table = evaluator.score(seeds[:1], [clip])
    logp = StockModel(
        stock_model(evaluator.decoder.model), evaluator.processor, torch.device("cpu")
    ).logp(seeds[0], clip)
    for k, group in enumerate(find_answers(evaluator.processor.tokenizer, seeds[0]).sequences):
        assert float(logp[[s[0] for s in group]].logsumexp(0)) == pytest.approx(
            float(table.logp[0, 0, k]), abs=1e-4
        )


@pytest.fixture(scope="module")
def tiny():
    """A random model with the whole window of 30 s."""
    model, processor = random_model(30)
    return evaluator_with(model, processor), StockModel(model, processor, torch.device("cpu"))


@pytest.mark.parametrize("samples", [1600, 2193, 3200, 3307, 16000, 70001, 200_000, 480_000])
def test_any_length_up_to_thirty_seconds_equals_the_stock_forward(
    tiny, seeds, clips, tmp_path, samples
):
    evaluator, stock = tiny
    path = tmp_path / "clip.wav"
    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    clip = replace(clips[0], path=path, sha256=f"length{samples}", clip_id="any")
    table = evaluator.score(seeds, [clip])
    for p, prompt in enumerate(seeds):
        logp = stock.logp(prompt, clip)
        found = find_answers(evaluator.processor.tokenizer, prompt)
        for k, group in enumerate(found.sequences):
            expected = float(logp[[s[0] for s in group]].logsumexp(0))
            assert expected == pytest.approx(float(table.logp[p, 0, k]), abs=1e-4)


def test_a_clip_longer_than_the_window_is_refused(evaluator, seeds, clips, tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(20000, np.float32), 16000)
    with pytest.raises(UserError, match=r"lasts 1\.25 s, the model hears 1 s"):
        evaluator.score(seeds[:1], [replace(clips[0], path=path, sha256="long")])


def test_answers_that_begin_alike_are_refused(pocket):
    tokenizer = pocket.processor.tokenizer
    with pytest.raises(PromptError, match="begin with the same tokens"):
        find_answers(tokenizer, Prompt("x", (("SPEECH", ("A",)), ("NONSPEECH", ("A",)))))
    with pytest.raises(PromptError, match="begin with the same tokens"):
        find_answers(
            tokenizer,
            Prompt("x", (("SPEECH", ("human voice",)), ("NONSPEECH", ("human voice here",)))),
        )


def test_letters_are_read_with_and_without_a_space(pocket, seeds):
    tokenizer = pocket.processor.tokenizer
    one = [tuple(tokenizer.encode(form, add_special_tokens=False)) for form in ("A", " A")]
    assert find_answers(tokenizer, seeds[0]).sequences[0] == tuple(one)
    assert all(len(s) == 1 for s in one)


@MOSTLY_BASE
def test_running_out_of_memory_halves_the_batch_and_changes_nothing(evaluator, seeds, clips):
    whole = evaluator.score(seeds, clips).logp
    small = AudioScorer(
        evaluator.checkpoint,
        "cpu",
        "float32",
        loaded=(stock_model(evaluator.decoder.model), evaluator.processor),
    )
    step, calls = small.decoder.step, []

    def fails_when_large(batch, cache):
        calls.append(len(batch.positions))
        if len(batch.positions) > 256:
            raise torch.OutOfMemoryError("pretended")
        return step(batch, cache)

    small.decoder.step = fails_when_large
    assert np.abs(small.score(seeds, clips).logp - whole).max() < 10 * CLOSE
    assert small.shape.tokens == 192 and {768, 384, 192} <= set(calls)


@MOSTLY_BASE
def test_prefixes_that_do_not_fit_are_computed_again_to_the_same_bits(evaluator, seeds, clips):
    clips = clips[:8]  # twice as many as fit
    whole = evaluator.score(seeds, clips).logp
    small = AudioScorer(
        evaluator.checkpoint,
        "cpu",
        "float32",
        shape=replace(evaluator.shape, prefix=8),
        loaded=(stock_model(evaluator.decoder.model), evaluator.processor),
        store_bytes=80 * evaluator.decoder.bytes_per_place,
    )
    for _ in range(2):
        assert np.abs(small.score(seeds, clips).logp - whole).max() < CLOSE
    assert 0 < small.prefixes.bytes <= 80 * small.decoder.bytes_per_place


@MOSTLY_BASE
@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.02), ("float16", 0.002)])
def test_half_precision_runs_in_fixed_shapes_and_its_noise_is_small(
    evaluator, seeds, clips, dtype, most
):
    clips = clips[:10]
    model16 = AudioScorer(evaluator.checkpoint, "cpu", dtype)
    whole = model16.score(seeds, clips).logp
    model16.forget()
    alone = model16.score(seeds[1:2], clips[3:4]).logp
    assert np.array_equal(alone[0, 0], whole[1, 3])
    exact = evaluator.score(seeds, clips).logp
    share = lambda t: np.exp(t - np.logaddexp.reduce(t, -1, keepdims=True))[..., 0]  # noqa: E731
    assert np.abs(share(whole) - share(exact)).mean() < most


def test_float16_clamps_in_the_audio_tower_where_the_stock_layer_does(clips):
    model, processor = random_model(1)
    model = model.half()
    for layer in model.model.audio_tower.layers:
        layer.fc2.bias.fill_(60_000.0)  # twice in the residual stream, and float16 ends at 65,504
    stock = StockModel(model, processor, torch.device("cpu"))
    ours = evaluator_with(model, processor, dtype="float16").score(ASKED[:1], clips[:4]).logp[0]
    theirs = np.array([stock_scores(stock, ASKED[0], clip)[0] for clip in clips[:4]])
    assert np.isfinite(theirs).all() and np.abs(ours - theirs).max() < 0.05


@pytest.mark.filterwarnings("error::RuntimeWarning")  # what numpy says of NaN is in no sentence
def test_what_leaves_the_range_of_float16_is_refused_and_float32_named(clips):
    model, processor = random_model(1)
    model.model.language_model.layers[0].mlp.down_proj.weight.mul_(1e6)
    with pytest.raises(UserError, match=r"gave NaN.* give --dtype float32"):
        evaluator_with(model.half(), processor, dtype="float16").score(ASKED[:1], clips[:2])


@pytest.mark.parametrize(
    "kind", [AudioScorer, pytest.param(partial(GenericScorer, share=False), marks=pytest.mark.slow)]
)
def test_weights_that_are_changed_while_they_are_in_use_give_no_scores(
    kind, tmp_path, seeds, dev_clips
):
    def scorer():
        return kind(open_checkpoint(str(base)), "cpu")

    def score(one, clip):
        return one.score(seeds[:1], [clip]).logp

    base = Path(shutil.copytree(POCKET / "base", tmp_path / "base"))
    path = base / "model.safetensors"
    tensors = {name: one.float() for name, one in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})  # as it is computed: the file is mapped
    whole = path.read_bytes()
    told, loaded, other = scorer(), scorer(), scorer()
    fingerprint = told.fingerprint
    assert loaded.fingerprint == fingerprint
    expected = score(loaded, dev_clips[0])
    path.write_bytes(whole)  # written anew, and the same
    (base / "README.md").unlink()
    assert (score(loaded, dev_clips[0]) == expected).all()
    with path.open("r+b") as file:
        file.seek(len(whole) // 2)
        file.write(bytes(reversed(whole[len(whole) // 2 :])))
    for one in (told, loaded):
        with pytest.raises(PauseError, match="were changed while they were in use"):
            score(one, dev_clips[1])
    assert other.fingerprint != fingerprint
    path.write_bytes(whole)
    assert (score(loaded, dev_clips[1]) == score(scorer(), dev_clips[1])).all()  # nothing is left


def test_the_fingerprint_changes_with_weights_precision_and_adapter(tmp_path):
    base = open_checkpoint("pocket-base")
    prints = {
        AudioScorer(base, "cpu", "float32").fingerprint,
        AudioScorer(base, "cpu", "bfloat16").fingerprint,
        AudioScorer(open_checkpoint("pocket-lora"), "cpu", "float32").fingerprint,
    }
    copy = tmp_path / "copy"
    shutil.copytree(base.base, copy)
    assert AudioScorer(open_checkpoint(str(copy)), "cpu", "float32").fingerprint in prints
    weights = load_file(copy / "model.safetensors")
    name = next(n for n in weights if n.endswith("o_proj.weight"))
    weights[name][0, 0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    prints.add(AudioScorer(open_checkpoint(str(copy)), "cpu", "float32").fingerprint)
    assert len(prints) == 4


def test_shorter_suffix_of_a_prompt_costs_its_own_tokens(pocket):
    tokenizer = pocket.processor.tokenizer
    assert len(encode(tokenizer, QWEN2_AUDIO.template.after("A or B?"))) < len(
        encode(tokenizer, QWEN2_AUDIO.template.after("A or B? " * 8))
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "neither one of pocket-base, pocket-lora, nor a directory"),
        (lambda p: p.mkdir(), "holds no config.json"),
        (
            lambda p: (
                p.mkdir(),
                (p / "config.json").write_text("{}"),
                (p / "pytorch_model.bin").write_bytes(b"x"),
            ),
            "pickled weights are not read",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_one_sentence(tmp_path, make, message):
    make(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        open_checkpoint(str(tmp_path / "model"))
