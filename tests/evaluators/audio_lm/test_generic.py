"""The generic path: every family that can be built here scores as its own whole forward does, and says how."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import tiny_generic
import torch
import transformers
from tiny_models import noise

from evaluators.audio_lm import generic, loading
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.generic import GenericScorer
from evaluators.audio_lm.generic_chat import Chat
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.build import build_evaluator
from evaluators.errors import PromptError, UserError
from evaluators.functional import check_loaded
from evaluators.prompts import Prompt
from opro.doctor import main as doctor
from opro.export import main as export
from opro.finetune import main as finetune
from opro.optimize import main as optimize

pytestmark = pytest.mark.tiny
APART = "text_first", "gemma4_bidirectional"  # families whose prompts cannot share a prefix
WORDS = (("SPEECH", ("present",)), ("NONSPEECH", ("absent", "B")))  # of one and of several tokens
PROMPTS = (
    Prompt("Is it speech? A) yes B) no"),
    Prompt("Does somebody speak? Say present or absent, and nothing else at all.", WORDS),
    Prompt("Speech: A. Other: B.", system=""),
    Prompt("Which is it?", system="You hear a short clip."),
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Family -> its folder, made once."""
    root, made = tmp_path_factory.mktemp("generic"), {}

    def make(name, maker=None):
        if name not in made:
            if lacking := name in tiny_generic.FAMILIES and tiny_generic.lacking(name):
                pytest.skip(f"{name} needs {', '.join(lacking)}")
            make_model = maker or tiny_generic.FAMILIES[name][0]
            made[name] = tiny_generic.write_folder(root / name, make_model)
        return made[name]

    return make


@pytest.fixture(scope="session")
def clips(dev_clips):
    first, second = sorted(dev_clips, key=lambda clip: clip.sha256)[:2]
    return [first, second, replace(first, audio="silence"), replace(second, audio="shuffled")]


def scorer(path, dtype="float32", **options):
    return GenericScorer(open_checkpoint(str(path)), "cpu", dtype, **options)


@pytest.fixture
def glmasr(folder):
    return folder("glmasr")


@pytest.mark.parametrize("name", tiny_generic.FAMILIES)
def test_a_family_scores_as_its_own_whole_forwards(name, folder, clips):
    path = folder(name)
    if name == "qwen2_audio":  # which `open_checkpoint` sends the packed way
        path = tiny_generic.POCKET / "base"
    one, whole = scorer(path), scorer(path, share=False)
    assert one.fingerprint  # and with it that all tensors have their places
    assert one.way.shared == (name not in APART)
    if one.way.shared:
        assert one.way.parity < 1e-4
    table, expected = one.score(PROMPTS, clips), whole.score(PROMPTS, clips)
    assert np.ptp(expected.logp[0], axis=0).max() > 1e-4  # clips are heard
    for ours, theirs in ((table.logp, expected.logp), (table.logp_top, expected.logp_top)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)
    assert one.usage.forward == len(PROMPTS) * len(clips)


@pytest.mark.parametrize("share", [True, False])
def test_silence_of_one_length_is_asked_once_and_scores_as_it_does_alone(
    folder, clips, share, monkeypatch
):
    one = scorer(folder("audioflamingo3"), share=share)
    first = clips[0]
    heard = [first, *(replace(first, sha256=f"{i}", audio="silence") for i in range(3))]
    alone = [one.score(PROMPTS, [clip]) for clip in heard]
    one.forget()
    steps, kind = [], "_step" if share else "_whole"
    made = getattr(one, kind)
    monkeypatch.setattr(one, kind, lambda *about: steps.append(1) or made(*about))
    table = one.score(PROMPTS, heard)
    assert table.clips == tuple(heard) and np.ptp(table.logp[0, :2], axis=0).max() > 1e-4
    assert np.array_equal(table.logp, np.concatenate([t.logp for t in alone], axis=1))
    assert np.array_equal(table.logp_top, np.concatenate([t.logp_top for t in alone], axis=1))
    count, steps[:] = len(steps), []
    one.score(PROMPTS, heard[:2])
    assert count == len(steps) > 0  # those of two clips
    assert one.usage.forward == len(PROMPTS) * (4 + 4 + 2)


def test_prompts_in_any_company_kept_or_not_in_batches_of_any_size_score_alike(folder, clips):
    one = scorer(folder("audioflamingo3"))
    table = one.score(PROMPTS, clips)
    again = one.score(PROMPTS[::-1], clips[::-1])  # from kept prefixes
    np.testing.assert_allclose(again.logp[::-1, ::-1], table.logp, atol=1e-5)
    one.forget()
    one._wanted = 1  # a row a batch
    for i, prompt in enumerate(PROMPTS):
        alone = one.score([prompt], clips)
        np.testing.assert_allclose(alone.logp[0], table.logp[i], atol=1e-5)


def test_a_packed_family_scores_alike_on_both_paths(pocket, seeds, clips):
    path = tiny_generic.POCKET / "base"
    prompts = [*seeds, replace(seeds[0], answers=WORDS)]
    ours, packed = scorer(path).score(prompts, clips), pocket.score(prompts, clips)
    np.testing.assert_allclose(ours.logp, packed.logp, atol=1e-4)
    np.testing.assert_allclose(ours.logp_top, packed.logp_top, atol=1e-4)
    assert isinstance(build_evaluator("pocket-base")[0], AudioScorer)


def test_probabilities_of_answers_of_several_tokens_are_those_of_their_tokens(folder, clips):
    """By hand, from one whole forward a sequence."""
    path = folder("audioflamingo3")
    one, prompt = scorer(path), PROMPTS[1]
    table = one.score([prompt], clips[:1])
    model = transformers.AudioFlamingo3ForConditionalGeneration.from_pretrained(path).eval()
    inputs = one.chat.inputs(prompt, clips[0])
    logp = []
    for word in ("absent", "B", " B"):
        answer = one.processor.tokenizer.encode(word)
        assert len(answer) == 1 or word == "absent"
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
        with torch.inference_mode():
            given = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            said = model(**given).logits[0].log_softmax(-1)
        end = ids.shape[1] - len(answer) - 1
        logp.append(sum(float(said[end + i, token]) for i, token in enumerate(answer)))
    assert table.logp[0, 0, 1] == pytest.approx(np.logaddexp.reduce(logp), abs=1e-5)
    assert table.logp_top[0, 0, 1] == pytest.approx(max(logp), abs=1e-5)


def look_ahead(model):
    """Every token hears the mean of all."""
    first = model.get_decoder().layers[0]
    first.register_forward_pre_hook(
        lambda _, args: (args[0] + args[0].mean(1, keepdim=True), *args[1:])
    )
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_looks_ahead_is_found_in_any_precision(
    dtype, folder, clips, monkeypatch, caplog
):
    path, load = folder("audioflamingo3"), loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *args: look_ahead(load(*args)))
    one, whole = scorer(path, dtype), scorer(path, dtype, share=False)
    ours, expected = one.score(PROMPTS[:2], clips[:2]), whole.score(PROMPTS[:2], clips[:2])
    assert not one.way.shared and "it looks ahead" in one.way.why
    assert [r.message for r in caplog.records] == [
        f"every pair is scored by a forward of its own: {one.way.why}"
    ]
    np.testing.assert_array_equal(ours.logp, expected.logp)


def test_a_model_whose_cache_goes_wrong_is_found_and_scored_by_whole_forwards(
    glmasr, clips, monkeypatch
):
    """Places that are counted from zero after a cache, and a cache that cannot be repeated."""
    load = loading.load_model

    def forgets_places(*args):
        model = load(*args)
        model.get_decoder().register_forward_pre_hook(
            lambda _, args, given: (
                args,
                given | {"position_ids": torch.arange(given["inputs_embeds"].shape[1])[None]},
            ),
            with_kwargs=True,
        )
        return model

    expected = scorer(glmasr, share=False).score(PROMPTS, clips)
    monkeypatch.setattr(loading, "load_model", forgets_places)
    one = scorer(glmasr)
    assert not one.way.shared and one.way.parity > 1e-3
    assert f"{one.way.parity:.2g} nats from those of whole forwards" in one.way.why
    np.testing.assert_allclose(one.score(PROMPTS, clips).logp, expected.logp, atol=1e-5)
    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(
        transformers.DynamicCache, "reorder_cache", lambda *args: {}["no such layer"]
    )
    one = scorer(glmasr)
    assert one.way.why.endswith("does not go on from a cache ('no such layer')")


def test_a_prompt_that_merges_with_what_precedes_it_is_scored_by_its_own_forward(
    folder, clips, monkeypatch, caplog
):
    one, whole = (scorer(folder("audioflamingo3"), share=share) for share in (None, False))
    for each in (one, whole):
        kind = type(each.processor)
        replaced = kind.replace_audio_token
        monkeypatch.setattr(  # as Gemma 3n's, which puts line breaks round the audio
            each.processor,
            "replace_audio_token",
            lambda *args, made=replaced, own=each.processor, **more: (
                made(own, *args, **more) + "\n"
            ),
        )
    merging = Prompt("\nIs it speech? A) yes B) no")
    ids = one.processor.tokenizer
    assert len(ids.encode("\n\n")) < 2 * len(ids.encode("\n"))
    prompts = [PROMPTS[0], merging, PROMPTS[1]]
    ours, expected = one.score(prompts, clips), whole.score(prompts, clips)
    assert one.way.shared
    np.testing.assert_allclose(ours.logp, expected.logp, atol=2e-5)
    assert [r.message for r in caplog.records] == [
        "1 prompts are scored by forwards of their own: their first characters merge with what precedes them"
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_where_memory_runs_out_batches_halve_for_that_call_alone(
    dtype, glmasr, clips, monkeypatch, caplog
):
    plain = scorer(glmasr, dtype)
    expected, before = plain.score(PROMPTS, clips), plain.fingerprint
    one, step = scorer(glmasr, dtype), GenericScorer._step
    assert one.way.shared

    def small_card(self, model, prefix, rows):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no room")
        return step(self, model, prefix, rows)

    monkeypatch.setattr(generic, "BATCH_TOKENS", {"cpu": 2048})
    monkeypatch.setattr(GenericScorer, "_step", small_card)
    tight = one.score(PROMPTS, clips)
    assert one.shape < 2048 and "out of memory: batches of" in caplog.text
    np.testing.assert_allclose(tight.logp, expected.logp, atol=1e-5 if dtype == "float32" else 0.05)
    assert (one.fingerprint == before) == (dtype == "float32")
    monkeypatch.setattr(GenericScorer, "_step", step)
    one.score(PROMPTS[:1], clips[:1])
    assert one.shape == 2048 and one.fingerprint == before


def test_a_fingerprint_holds_what_can_change_a_score_and_no_name(folder, glmasr, tmp_path):
    here = scorer(glmasr).fingerprint
    copy = shutil.copytree(glmasr, tmp_path / "other name")
    assert scorer(copy).fingerprint == here
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    prints = {here, scorer(copy).fingerprint, scorer(glmasr, "bfloat16").fingerprint}
    prints |= {scorer(folder("audioflamingo3")).fingerprint}
    assert len(prints) == 4


def test_an_adapter_of_peft_scores_as_peft_does(glmasr, clips, tmp_path):
    model = transformers.GlmAsrForConditionalGeneration.from_pretrained(glmasr)
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False
    )  # fmt: skip
    joined = peft.get_peft_model(model, config).eval()
    joined.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(glmasr), adapter=tmp_path)
    one = GenericScorer(checkpoint, "cpu", "float32")
    table = one.score(PROMPTS[:1], clips)
    rows = list(one.chat.rows(0, PROMPTS[0]))
    with torch.inference_mode():
        expected = [one._whole(joined.get_base_model(), PROMPTS[0], c, rows[0]) for c in clips]
    sums = np.logaddexp.reduceat(np.array(expected), [0, 2], axis=1)  # "A" and " A", "B" and " B"
    np.testing.assert_allclose(table.logp[0], sums, atol=1e-4)
    plain = scorer(glmasr)
    assert np.abs(plain.score(PROMPTS[:1], clips).logp - table.logp).max() > 0.01
    assert plain.fingerprint != one.fingerprint


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CLASSES = {
    "no audio model": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "class 'LlamaForCausalLM', which does not answer questions about audio",
    ),
    "an audio tower alone": (
        {"model_type": "whisper", "architectures": ["WhisperForAudioClassification"]},
        "class 'WhisperForAudioClassification', which does not answer",
    ),
    "an unknown class": ({"architectures": ["Kimi9"]}, "class 'Kimi9', which transformers"),
    "no class": ({"architectures": None}, "class None, which transformers"),
}


@pytest.mark.parametrize("values, sentence", CLASSES.values(), ids=CLASSES)
def test_a_class_that_cannot_be_scored_is_refused_with_the_way_round(
    values, sentence, glmasr, tmp_path
):
    copy = shutil.copytree(glmasr, tmp_path / "model")
    edit(copy / "config.json", **values)
    with pytest.raises(UserError, match=sentence) as caught:
        open_checkpoint(str(copy))
    assert "--checkpoint endpoint:MODEL" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_of_a_folder_is_never_run(name, glmasr, tmp_path):
    """Nor is the folder taken where transformers has the class itself: which of the two was meant is not guessed."""
    copy = shutil.copytree(glmasr, tmp_path / "model")
    (copy / "evil.py").write_text("raise SystemExit('remote code ran')")
    edit(copy / name, auto_map={"AutoModel": "evil.Model", "AutoProcessor": "evil.Processor"})
    with pytest.raises(UserError, match=rf"{name}' sets auto_map, .* never run .* name the server"):
        open_checkpoint(str(copy))


def test_a_template_that_drops_the_question_or_is_missing_is_refused(folder, glmasr, tmp_path):
    with pytest.raises(UserError, match="no place for one clip and one question"):
        scorer(folder("transcriber", tiny_generic.transcriber)).chat  # noqa: B018
    copy = shutil.copytree(glmasr, tmp_path / "model")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template; download"):
        scorer(copy).chat  # noqa: B018


def test_a_library_that_a_processor_needs_is_named(glmasr, monkeypatch):
    def needs(*_, **__):
        raise ImportError("X requires the Torchvision library but it was not found. See there")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", needs)
    with pytest.raises(
        UserError, match=r"X requires the Torchvision library .*install it with pip"
    ):
        scorer(glmasr).chat  # noqa: B018


def test_a_model_that_does_not_fit_its_processor_is_one_sentence(glmasr, monkeypatch):
    load = loading.load_model

    def deaf(*args):
        model = load(*args)
        model.forward = lambda input_ids, cache=None, logits_to_keep=0: None
        return model

    monkeypatch.setattr(loading, "load_model", deaf)
    with pytest.raises(UserError, match="does not answer a question about a made-up clip"):
        scorer(glmasr).way  # noqa: B018


def test_a_clip_that_a_processor_would_cut_is_refused(folder, clips, tmp_path):
    """The window here is of 4 s; families of one window cut what is longer, those of several do not."""
    waves = [noise(tmp_path, clips[0], n, samples) for n, samples in enumerate((64000, 70000))]
    waves = [replace(c, duration_ms=ms) for c, ms in zip(waves, (4000, 4375), strict=True)]
    several = scorer(folder("glmasr")).score(PROMPTS[:1], waves)
    assert np.isfinite(several.logp).all()
    path = shutil.copytree(tiny_generic.POCKET / "base", tmp_path / "pocket")
    one = scorer(path)
    window = one.processor.feature_extractor.n_samples
    within, beyond = (noise(tmp_path, clips[0], n, window + n) for n in (0, 8000))
    one.chat.check_end(PROMPTS[0], within, one.chat.inputs(PROMPTS[0], within))
    with pytest.raises(UserError, match="is longer than the model's own Qwen2AudioProcessor hears"):
        one.score(PROMPTS[:1], [beyond])


def test_clips_are_resampled_to_the_rate_of_the_front_end(glmasr):
    asked = []

    class Processor:
        """GLM-ASR's, of another rate."""

        feature_extractor = SimpleNamespace(sampling_rate=24000)

        def __getattr__(self, name):
            return getattr(real, name)

        def __call__(self, audio, sampling_rate, **_):
            asked.append((len(audio[0]), sampling_rate))
            return {}

    real = scorer(glmasr).processor
    Chat(Processor(), True, True).process(PROMPTS[0], np.zeros(16000, np.float32))
    assert asked == [(24000, 24000)]


def test_control_tokens_in_a_prompt_are_refused(glmasr, clips):
    with pytest.raises(PromptError, match=r"holds '<\|pad\|>', which is a control token"):
        scorer(glmasr).score([Prompt("Hear <|pad|>! A) yes B) no")], clips[:1])


def test_the_path_is_told(glmasr, folder, capsys):
    for path, level, words in (
        (
            glmasr,
            "ok",
            "prompts share a clip's prefix: that gives what whole forwards give (parity on",
        ),
        (folder("text_first"), "look", "each pair is a forward of its own: the chat template puts"),
    ):
        evaluator = build_evaluator(str(path), device="cpu")[0]
        assert isinstance(evaluator, GenericScorer)
        found = {one.about: one for one in check_loaded(evaluator, PROMPTS)}
        assert found["path"].level == level and words in found["path"].text
        assert "present" in found["answers"].text
    assert (
        "packed"
        in {one.about: one.text for one in check_loaded(build_evaluator("pocket-base")[0], [])}[
            "path"
        ]
    )


def test_a_search_runs_from_end_to_end(glmasr, make_manifest, tmp_path, capsys):
    manifest = make_manifest()
    common = ["--checkpoint", str(glmasr), "--manifest", str(manifest)]
    assert optimize([*common, "--iterations", "1", "--runs-dir", str(tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs").glob("*-race-*")
    assert (run / "best.yaml").is_file()
    with pytest.raises(UserError, match="exporting is made for models of type"):
        export([str(run), "--to", str(tmp_path / "out")])
    with pytest.raises(UserError, match="merging is made for models of type"):
        finetune(["--checkpoint", str(glmasr), "--merge", str(tmp_path / "lora")])
    with pytest.raises(UserError, match=r"nf4 is not known to reach all weights"):
        optimize([*common, "--quantization", "nf4"])
    assert not (tmp_path / "out").exists() and not (tmp_path / "lora").exists()
    doctor([*common, "--clips", "4"])
    assert "generic: models of type glmasr" in capsys.readouterr().out
