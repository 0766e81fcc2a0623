"""What is wrong inside a model that runs here: weights, head, template, and the installed library's own forward.

`evaluators.functional` sees that a model does not hear; here the likely cause is looked for.
"""

import dataclasses
import gc
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch
from torch import Tensor, nn

from evaluators.audio_lm import selftest
from evaluators.audio_lm.adapters import merge
from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.checkpoint import SelfTest
from evaluators.audio_lm.families import QWEN2_AUDIO, family_of
from evaluators.audio_lm.generic import GenericScorer
from evaluators.audio_lm.loading import load_model, stock_model
from evaluators.audio_lm.model_folder import tensor_types
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.selftest import EXACT, ROUGH, Tolerance
from evaluators.audio_lm.stock import StockModel, template_text
from evaluators.audio_lm.templates import Template, other_templates
from evaluators.clips import Clip, clip_wave
from evaluators.errors import PromptError, UserError
from evaluators.evaluator import ScoreTable
from evaluators.findings import Finding
from evaluators.known_broken import trained_with
from evaluators.prompts import Prompt

NOWHERE = 0.95  # mass outside the answers, with every prompt: no wording does that to a model that answers at all
CHANCE = 10.0  # times a token's share by chance; the answers of a trained model have thousands
# A matrix looks as it is drawn before training if its deviation is the configuration's to 3 % and its tails are a
# normal distribution's: training widens both. From SAMPLE weights they are known to 0.3 % and 0.02. In the shipped
# checkpoints no matrix looks so.
DEVIATION, KURTOSIS, SAMPLE = 0.03, 0.15, 65_536
DRAWN = 0.25  # share of a part's matrices that may look so
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
SAME = 1e-6  # features or probabilities that are the same
PADDING = 1e-4  # of a clip alone and padded, in float32: 7e-7 with the shipped checkpoint, 6e-4 where padding is heard
ALIKE = (
    0.01  # relative distance of embeddings: those of a clip and of silence are 0.9 apart and more
)
ELSEWHERE = "scores here do not go through it, other programs do"
TRAIN_AGAIN = "train it again with the template that scores use, as python -m opro.finetune does"


def precision(scorer: AudioScorer) -> Tolerance:
    """How far two ways of computing the same may lie apart."""
    return EXACT if scorer.dtype == torch.float32 else ROUGH


def same_model(scorer: AudioScorer, template: Template | None = None) -> AudioScorer:
    """The loaded model again, without its self-test; with another chat template, if one is given."""
    again = AudioScorer(
        scorer.checkpoint,
        str(scorer.device),
        _name(scorer.dtype),
        shape=scorer.shape,
        dequantize=scorer.dequantize,
        loaded=(stock_model(scorer.decoder.model), scorer.processor),
    )
    again.family = dataclasses.replace(scorer.family, template=template or scorer.family.template)
    return again


def with_other_templates(scorer: AudioScorer) -> Iterator[tuple[str, AudioScorer]]:
    """(In words, the model) under the templates that trainers use beside the one that scores use."""
    usual = family_of(scorer.config).template
    for name, template in other_templates(scorer.family.template, usual).items():
        yield name, same_model(scorer, template)


def check_self_test(scorer: AudioScorer) -> Generator[Finding, None, AudioScorer]:
    """Whether an adapter gives the scores that its folder tells of. Returns the model without its self-test."""
    plain, test = same_model(scorer), scorer.checkpoint.self_test
    if test is None:
        return plain
    try:
        _test(plain, test)
        yield Finding(
            "ok", "self-test", "made-up clips have the scores that training.json tells of"
        )
    except UserError as error:
        yield _other_scores(plain, test, error)
    return plain


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _test(scorer: AudioScorer, test: SelfTest) -> None:
    selftest.check(scorer, test, _name(scorer.dtype), scorer.checkpoint.name)


def _other_scores(scorer: AudioScorer, test: SelfTest, error: UserError) -> Finding:
    """Why an adapter has other scores than its folder tells of."""
    checkpoint = scorer.checkpoint
    for name, other in with_other_templates(scorer):
        try:
            _test(other, test)
        except UserError:
            continue
        return Finding(
            "broken",
            "template",
            f"checkpoint {checkpoint.name!r} has the scores that training.json tells of only {name}: trainer and"
            " scorer have different chat templates",
            TRAIN_AGAIN,
        )
    try:
        checkpoint.digest  # noqa: B018  # which compares the base with the one it was trained on
    except UserError as other_base:
        return Finding("broken", "self-test", str(other_base))
    assert checkpoint.adapter is not None, "only adapters have a self-test"
    changed = ", ".join(
        f"{name} {then} then and {now} now"
        for name, then in trained_with(checkpoint.adapter).items()
        if then != (now := _installed(name))
    )
    return Finding(
        "broken",
        "self-test",
        f"{error}: the weights are those of the training, {changed or 'the versions too'}; no known template gives its"
        " scores either",
        "install the versions of the training" if changed else TRAIN_AGAIN,
    )


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def list_answers(
    scorer: AudioScorer | GenericScorer, prompts: Sequence[Prompt]
) -> Iterator[Finding]:
    """The tokens that each answer is read by; prompts that cannot be scored are left out."""
    tokenizer = scorer.processor.tokenizer
    shown = set()
    for prompt in prompts:
        try:
            groups = find_answers(tokenizer, prompt).sequences
        except PromptError:
            continue  # it is said where the prompt is scored
        parts = []
        for (label, _), group in zip(prompt.answers, groups, strict=True):
            words = ", ".join(f"{tokenizer.decode(list(s))!r} {list(s)}" for s in group)
            parts.append(f"{label}: {words}")
        text = "; ".join(parts)
        if text not in shown:
            shown.add(text)
            yield Finding("ok", "answers", text)


def check_weights(scorer: AudioScorer) -> Iterator[Finding]:
    """Parts of the model whose weights are no numbers, or look as they are drawn before training."""
    model = scorer.decoder.model
    if torn := [name for name, one in model.named_parameters() if not _is_finite(one)]:
        yield Finding(
            "broken",
            "weights",
            f"{len(torn)} of the model's tensors hold NaN or infinity, {torn[0]} first",
            "download the checkpoint or its adapter again, or take an earlier state of the training",
        )
        return
    inner = model.model
    parts = {
        "audio tower": inner.audio_tower,
        "projector": getattr(inner, "multi_modal_projector", None),
        "language model": inner.language_model,
        "output head": model.lm_head,
    }
    deviation = float(getattr(model.config.text_config, "initializer_range", 0.02))
    whole = True
    for name, part in parts.items():
        layers = [m for m in part.modules() if type(m) in PRODUCTS] if part is not None else []
        drawn = sum(_is_drawn(layer.weight, deviation) for layer in layers)
        if drawn and drawn >= DRAWN * len(layers):
            whole = False
            yield Finding(
                "broken",
                "weights",
                f"{drawn} of {len(layers)} weight matrices of the {name} look as they are drawn at random before"
                f" training (a normal distribution with deviation {deviation:g}): they were never loaded or trained",
                "download the checkpoint again, or save it again from the trained model, and compare the names of its"
                " tensors with the base's",
            )
    if whole:
        yield Finding("ok", "weights", "no part of the model looks untrained")


def _is_finite(weight: Tensor) -> bool:
    return not weight.is_floating_point() or bool(torch.isfinite(weight).all())


def _is_drawn(weight: Tensor, deviation: float) -> bool:
    """Whether a matrix cannot be told from one that is drawn from a normal distribution of that deviation."""
    if not weight.is_floating_point():
        return False  # 4-bit
    flat = weight.detach().flatten()
    sample = flat[:: max(1, len(flat) // SAMPLE)].float()
    spread = float(sample.std())
    if not abs(spread / deviation - 1) < DEVIATION:
        return False
    return abs(float((((sample - sample.mean()) / spread) ** 4).mean()) - 3) < KURTOSIS


def is_lost(table: ScoreTable) -> bool:
    """Whether all prompts give next to nothing to their answers."""
    return float(table.outside.mean(axis=-1).min()) > NOWHERE


def check_head(scorer: AudioScorer, table: ScoreTable) -> Iterator[Finding]:
    """Whether the output head is why no prompt has an answer."""
    given = 1 - float(table.outside.mean(axis=-1).min())
    seen = f"no prompt gives its answers more than {100 * given:.2g} % of the probability"
    tokens = int(scorer.decoder.model.config.text_config.vocab_size)
    share = float(np.exp(table.logp_top).mean()) * tokens
    likeliest = _likeliest(scorer, table)
    if _is_tied(scorer):
        text = f"{seen}: the output head is the embeddings, though the checkpoint's files hold a head of its own"
    elif likeliest in scorer.processor.tokenizer.get_added_vocab():
        text = f"{seen}, and the control token {likeliest} the most"
    elif share < CHANCE:
        text = f"{seen}, {share:.1g} times what each of {tokens:,} tokens has by chance"
    else:
        return  # it talks; what is said of each prompt says so
    yield Finding(
        "broken",
        "head",
        f"{text}: the output head (lm_head) is not the one of this language model",
        "take a transformers that does not tie it (5.11 and above), and check that lm_head.weight is in the"
        " checkpoint's files and tie_word_embeddings is right in its config.json",
    )


def _is_tied(scorer: AudioScorer) -> bool:
    """Whether the head is the embedding matrix, and the files hold another one."""
    model = scorer.decoder.model
    if not torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight):
        return False
    if getattr(model.config.text_config, "tie_word_embeddings", False):
        return False
    files = scorer.checkpoint.base.glob("*.safetensors")
    return any(key.endswith("lm_head.weight") for path in files for key in tensor_types(path))


def where_lost(scorer: AudioScorer, clips: Sequence[Clip]) -> tuple[str, str]:
    """(Where on its way audio is lost, what to do), for a model whose answers it does not change."""
    clip = max(clips, key=lambda clip: clip.duration_ms)
    silent = dataclasses.replace(clip, audio="silence")
    waves = clip_wave(clip), clip_wave(silent)
    if np.array_equal(*waves):
        return (
            "the clips are silent",
            "make them anew, and see what opro.audit says of their levels",
        )
    mel, mel_of_silence = (scorer.feature_store.log_mel([wave]) for wave in waves)
    if np.allclose(mel, mel_of_silence, atol=SAME):
        return (
            "the feature extractor makes the same features of a clip and of silence",
            "take preprocessor_config.json or processor_config.json of the base model",
        )
    sound, silence = scorer.embeddings([clip, silent])
    if float((sound - silence).norm()) <= ALIKE * float(sound.norm()):
        return (
            "audio tower and projector make the same embeddings of a clip and of silence",
            "download the checkpoint again: weights of audio tower or projector are missing or zero",
        )
    return (
        "the language model gives the same answers whatever the audio's embeddings are",
        "download the checkpoint again: weights of the language model or of the adapter are missing or zero",
    )


@dataclass(frozen=True)
class StockAnswers:
    """What the installed library says by itself of two clips, with weights that it has loaded itself.

    Attributes:
        prompt: What it was asked.
        clips: The shortest and the longest.
        alone: ``[clip, token]`` probabilities of each clip by itself.
        batch: The same of both, padded in a batch.
        silence: ``[token]`` probabilities of silence that is as long as the longest.
    """

    prompt: Prompt
    clips: tuple[Clip, Clip]
    alone: Tensor
    batch: Tensor
    silence: Tensor


def ask_stock(
    scorer: AudioScorer, prompts: Sequence[Prompt], clips: Sequence[Clip]
) -> StockAnswers | Finding | None:
    """The installed library's own forward, on the first prompt that has answer tokens.

    The checkpoint is loaded anew, by that library alone, so that weights that a scorer loads wrong do not go into both
    sides of the comparison. It is dropped before this returns: where the scorer has loaded nothing yet, only one model
    lies in memory.

    Returns:
        A finding where the library cannot do it; None where there is nothing to ask it.
    """
    known = (prompt for prompt in prompts if _has_answers(scorer, prompt))
    prompt = next(known, None)
    if prompt is None or scorer.family.model_class != QWEN2_AUDIO.model_class:
        return None
    by_length = sorted(clips, key=lambda clip: clip.duration_ms)
    try:
        return _ask(scorer, prompt, (by_length[0], by_length[-1]))
    except Exception as error:  # whatever a library may raise; it is not on the way of a score
        return _cannot_run(error)
    finally:
        if scorer.device.type == "cuda":
            gc.collect()  # should a library's model refer to itself
            torch.cuda.empty_cache()


def _has_answers(scorer: AudioScorer, prompt: Prompt) -> bool:
    try:
        find_answers(scorer.processor.tokenizer, prompt)
    except PromptError:
        return False
    return True


def _ask(scorer: AudioScorer, prompt: Prompt, clips: tuple[Clip, Clip]) -> StockAnswers:
    what = scorer.checkpoint, scorer.family, scorer.device, scorer.dtype
    model = load_model(*what, by_itself=True)
    merge(model, scorer.dtype, scorer.dequantize)
    stock = StockModel(model, scorer.processor, scorer.device)
    alone = torch.stack([stock.logp(prompt, clip) for clip in clips]).exp()
    batch = stock.forward(stock.batch(prompt, clips)).exp()
    silence = stock.logp(prompt, dataclasses.replace(clips[-1], audio="silence")).exp()
    return StockAnswers(prompt, clips, alone.cpu(), batch.cpu(), silence.cpu())


def _cannot_run(error: Exception) -> Finding:
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return Finding(
        "look",
        "stock",
        f"{_stock()} cannot run this model ({type(error).__name__}: {said}); {ELSEWHERE}",
        "take another version of it for programs that do",
    )


def _stock() -> str:
    return f"transformers {_installed('transformers')} by itself"


@dataclass(frozen=True)
class _StockDistances:
    """How far answers of the installed library's own forward lie apart, in probability.

    Attributes:
        silence: Of a clip and of silence.
        batch: Of clips alone and padded in a batch.
        ours: Of them and of the scores given here; None where an answer takes several tokens, or was not scored.
    """

    silence: float
    batch: float
    ours: float | None


def check_stock(
    scorer: AudioScorer, table: ScoreTable, stock: StockAnswers | Finding, arrives: bool
) -> Iterator[Finding]:
    """Whether the installed library's own forward hears, pads well, and gives the scores that are given here.

    Scores do not go through it, but other programs do: trainers and evaluations elsewhere.

    Args:
        scorer: The model.
        table: What it says of clips.
        stock: What `ask_stock` returned.
        arrives: Audio moves these scores, so that it should move the library's, too.
    """
    if isinstance(stock, Finding):
        yield stock
        return
    try:
        yield from _check_chat_template(scorer, stock.prompt)
    except Exception as error:  # as of `ask_stock`
        yield _cannot_run(error)
        return
    found, who = _stock_distances(scorer, table, stock), _stock()
    allowed = precision(scorer).probability
    padding = PADDING if scorer.dtype == torch.float32 else allowed
    if found.silence < SAME:
        if arrives:  # else it is lost in the model, which is said already
            yield Finding(
                "look",
                "stock",
                f"{who} gives the same answers to a clip and to silence: its processor hands no audio on; {ELSEWHERE}",
                "give the processor audio= (not audios=) and sampling_rate=, and the processor's files of this model",
            )
        return
    if found.batch > padding:
        yield Finding(
            "look",
            "stock",
            f"{who} answers a clip otherwise alone than padded in a batch, by {found.batch:.2g} in probability:"
            f" padding is heard; {ELSEWHERE}",
            "train and evaluate there with one clip a batch, or hand on the attention mask and pad on the left",
        )
    if found.ours is not None and found.ours > allowed:
        yield Finding(
            "broken",
            "stock",
            f"{who} and the scores here differ by {found.ours:.2g} in probability, {allowed:g} is allowed: one of them"
            " is wrong",
            "give --dtype float32; if that does not help, take another transformers or torch, and report it",
        )
    elif found.batch <= padding:
        ours = (
            ""
            if found.ours is None
            else f"the scores that are given here (to {found.ours:.1g}) and "
        )
        yield Finding(
            "ok",
            "stock",
            f"{who} gives {ours}the same in a batch (to {found.batch:.1g} in probability)",
        )


def _stock_distances(
    scorer: AudioScorer, table: ScoreTable, stock: StockAnswers
) -> _StockDistances:
    groups = find_answers(scorer.processor.tokenizer, stock.prompt).sequences
    ours = None
    scored = stock.prompt in table.prompts and all(clip in table.clips for clip in stock.clips)
    if scored and all(len(sequence) == 1 for group in groups for sequence in group):
        columns = [[sequence[0] for sequence in group] for group in groups]
        theirs = np.array([[float(row[part].sum()) for part in columns] for row in stock.alone])
        tried = [table.clips.index(clip) for clip in stock.clips]
        here = np.exp(table.logp[table.prompts.index(stock.prompt), tried])
        ours = float(np.abs(theirs - here).max())
    return _StockDistances(
        float((stock.silence - stock.alone[-1]).abs().max()),
        float((stock.batch - stock.alone).abs().max()),
        ours,
    )


def _check_chat_template(scorer: AudioScorer, prompt: Prompt) -> Iterator[Finding]:
    """Whether the processor's own chat template, which trainers use, writes what scores are given for."""
    if not getattr(scorer.processor, "chat_template", None):
        return
    asked = [{"type": "audio", "audio_url": "clip.wav"}, {"type": "text", "text": prompt.text}]
    asked = asked[::-1] if prompt.presentation.text_first else asked
    said = scorer.processor.apply_chat_template(
        [{"role": "system", "content": prompt.system}, {"role": "user", "content": asked}],
        tokenize=False,
        add_generation_prompt=True,
    )
    if said != template_text(prompt, scorer.family.template):
        yield Finding(
            "look",
            "template",
            "the processor's own chat template writes another text round audio and question than scores here use: what"
            " a trainer made with it is scored with the other",
            "compare chat_template of the checkpoint with the base model's, and train with python -m opro.finetune",
        )


def _likeliest(scorer: AudioScorer, table: ScoreTable) -> str:
    """The likeliest token after the first prompt, by the installed library's own forward; "" where it has none."""
    if scorer.family.model_class != QWEN2_AUDIO.model_class:
        return ""
    stock = StockModel(scorer.decoder.model, scorer.processor, scorer.device)
    token = int(stock.logp(table.prompts[0], table.clips[0]).argmax())
    return str(scorer.processor.tokenizer.convert_ids_to_tokens(token))
