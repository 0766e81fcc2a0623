"""The evaluator equals the stock model, and a score depends on nothing but its prompt and clip."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from evaluators.audio_lm.answer_tokens import PromptError, find_answers
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.scorer import AudioScorer, pack_prompt
from evaluators.audio_lm.stock import StockModel
from evaluators.clips import clip_wave
from evaluators.errors import UserError
from evaluators.prompts import Prompt, after_audio, encode
from evaluators.splits import balanced_order

pytestmark = pytest.mark.tiny
CLOSE = 1e-5  # nats, float32


@pytest.fixture(scope="module", params=["pocket-base", "pocket-lora"])
def evaluator(request):
    return AudioScorer(open_checkpoint(request.param), "cpu", "float32")


def evaluator_of(checkpoint):
    return AudioScorer(checkpoint, "cpu", "float32")


@pytest.fixture(scope="module")
def clips(dev_clips):
    return balanced_order(dev_clips)[:20]


def test_two_hundred_pairs_equal_the_stock_forward_and_constrained_generation(
    evaluator, seeds, heldout, clips
):
    prompts = [*seeds, *heldout[:7]]
    stock = StockModel(evaluator.decoder.model, evaluator.processor, torch.device("cpu"))
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
        f"{evaluator.checkpoint.name}: 200 pairs, largest difference {worst:.1e} nats, {near_ties}"
        f" near ties, {agree} of {200 - near_ties} labels equal"
    )
    assert len(prompts) * len(clips) == 200
    assert worst < 1e-4
    assert agree == 200 - near_ties


def test_one_by_one_equals_all_at_once(evaluator, seeds, heldout, clips):
    prompts = [*seeds, *heldout[:3]]
    whole = evaluator.score(prompts, clips).logp
    for p in (0, 4):
        for c in (0, 7, 13):
            evaluator.forget()
            assert np.array_equal(evaluator.score([prompts[p]], [clips[c]]).logp[0, 0], whole[p, c])


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
    stock = StockModel(evaluator.decoder.model, evaluator.processor, torch.device("cpu"))
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
    suffix = encode(tokenizer, after_audio(seeds[0].text))
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
    prompts = [*seeds, *heldout[:5]]

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


def test_answers_and_the_rest_of_the_vocabulary_sum_to_one(evaluator, seeds, clips):
    table = evaluator.score(seeds, clips)
    assert (table.outside >= -1e-5).all() and (table.outside <= 1).all()
    assert np.allclose(np.exp(table.logp).sum(-1) + table.outside, 1, atol=1e-6)


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
    by_frames = {}
    for wave in waves:
        by_frames.setdefault(-(-len(wave) // 160), []).append(wave)
    for frames, part in by_frames.items():
        together = FeatureStore(None, extractor).log_mel(part)
        for wave, mel in zip(part, together, strict=True):
            whole = extractor([wave], sampling_rate=16000, return_tensors="np")["input_features"][0]
            count = min(2 * ((frames - 1) // 2 + 1) + 2, whole.shape[-1])
            assert np.array_equal(mel[:, :count], whole[:, :count])


def test_features_kept_on_disk_change_nothing_and_a_torn_file_is_made_anew(
    evaluator, seeds, clips, tmp_path
):
    whole = evaluator.score(seeds[:1], clips).logp
    loaded = (evaluator.decoder.model, evaluator.processor)
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
    logp = StockModel(evaluator.decoder.model, evaluator.processor, torch.device("cpu")).logp(
        seeds[0], clip
    )
    for k, group in enumerate(find_answers(evaluator.processor.tokenizer, seeds[0]).sequences):
        assert float(logp[[s[0] for s in group]].logsumexp(0)) == pytest.approx(
            float(table.logp[0, 0, k]), abs=1e-4
        )


@pytest.fixture(scope="module")
def tiny():
    """A random model of the architecture with grouped queries and the whole window of 30 s."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    checkpoint = open_checkpoint("pocket-base")
    tokenizer = AudioScorer(checkpoint, "cpu").processor.tokenizer
    config = Qwen2AudioConfig(
        audio_config={"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
                      "encoder_ffn_dim": 64, "num_mel_bins": 80, "max_source_positions": 1500},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer) + 8, "hidden_size": 64,
                     "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
                     "num_key_value_heads": 2},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(3)  # so that answers differ
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer)
    evaluator = AudioScorer(checkpoint, "cpu", "float32", loaded=(model, processor))
    return evaluator, StockModel(model, processor, torch.device("cpu"))


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


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(evaluator, seeds, clips):
    whole = evaluator.score(seeds, clips).logp
    small = AudioScorer(
        evaluator.checkpoint,
        "cpu",
        "float32",
        loaded=(evaluator.decoder.model, evaluator.processor),
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


def test_prefixes_that_do_not_fit_are_computed_again_to_the_same_bits(evaluator, seeds, clips):
    whole = evaluator.score(seeds, clips).logp
    small = AudioScorer(
        evaluator.checkpoint,
        "cpu",
        "float32",
        shape=replace(evaluator.shape, prefix=8),
        loaded=(evaluator.decoder.model, evaluator.processor),
    )
    prefixes, begun = small.prefixes, []
    begin = prefixes._begin
    prefixes._begin = lambda system, shape: begun.append(system) or begin(system, shape)
    prefixes.budget = lambda: 80 * small.decoder.bytes_per_place
    for _ in range(2):
        assert np.abs(small.score(seeds, clips).logp - whole).max() < CLOSE
    assert len(begun) > 2


def test_bfloat16_runs_in_fixed_shapes_and_its_noise_is_small(evaluator, seeds, clips):
    model16 = AudioScorer(evaluator.checkpoint, "cpu", "bfloat16")
    whole = model16.score(seeds, clips).logp
    model16.forget()
    alone = model16.score(seeds[1:2], clips[3:4]).logp
    assert np.array_equal(alone[0, 0], whole[1, 3])
    exact = evaluator.score(seeds, clips).logp
    share = lambda t: np.exp(t - np.logaddexp.reduce(t, -1, keepdims=True))[..., 0]  # noqa: E731
    assert np.abs(share(whole) - share(exact)).mean() < 0.02


def test_the_fingerprint_changes_with_weights_precision_and_adapter(tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

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
    assert len(encode(tokenizer, after_audio("A or B?"))) < len(
        encode(tokenizer, after_audio("A or B? " * 8))
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


def test_a_folder_that_only_looks_like_a_hub_snapshot_is_read(tmp_path):
    import shutil

    copy = tmp_path / "snapshots" / "mine"
    shutil.copytree(open_checkpoint("pocket-base").base, copy)
    before = open_checkpoint(str(copy)).digest
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert open_checkpoint(str(copy)).digest != before
