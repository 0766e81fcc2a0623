"""Does a model hear what it is asked about? Checks with known answers, and the likely cause where it does not.

That a score equals the installed library's own forward shows nothing where library, weights or template are wrong: both
are wrong alike. Here labels decide: clear clips must be told apart, silence and shuffled samples must move the answers,
and a clip's answer must not depend on its neighbours. This works for any evaluator; of a model that runs here
`audio_lm.stack` says what is wrong inside.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.audio_lm import stack
from evaluators.audio_lm.generic import GenericScorer
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.selftest import EXACT, ROUGH
from evaluators.clips import Audio, Clip, ClipSet
from evaluators.endpoint import Endpoint
from evaluators.evaluator import Array, Evaluator, ScoreTable
from evaluators.findings import Finding
from evaluators.prompts import Prompt
from evaluators.statistics.metrics import auroc

# Nats by which silence or shuffled samples move the answers on average. Where no audio arrives it is 0 but for rounding
# (0.001 in half precision). The shipped checkpoints move by 0.08 and more; with a random audio tower by 0.005 to 0.1.
REACHES = 0.01
WEAK = (
    0.1  # nats by which silence moves the answers, below which labels may be told apart by accident
)
# AUROC with the best prompt on clear clips. What knows nothing has 0.5 +- 0.065 on 40 clips against 40, and the best of
# three prompts stays below 0.6 in 9 of 10 draws; the poorer one of the shipped checkpoints has 0.82.
KNOWS = 0.65
MIN_CLEAR = 10  # clips of a label, for with fewer AUROC may be anything
TEMPLATE_GAIN = 0.1  # AUROC: twice what a paired difference of 80 clips varies by
COMPANY = 24  # clips that are scored together, the shortest and the longest in turns
TRIED_ALONE = 6  # and so many of them alone: each costs a call
SOUND_ALONE = (
    "the model hears whether there is sound, but not what it is, as where feature extractor, audio tower or projector"
    " are not those of its training"
)
UNTRAINED = "where audio tower, projector or head are not the trained ones, or the template is not that of the training"
ANEW = "see the findings on weights, head and template; where there are none, download checkpoint and processor again"
CONTROLS: tuple[Audio, Audio] = ("silence", "shuffled")


@dataclass(frozen=True)
class Heard:
    """What prompts say of clips, and of the same clips with something else in place of the recording."""

    recorded: ScoreTable
    controls: Mapping[Audio, ScoreTable]

    @classmethod
    def of(cls, evaluator: Evaluator, prompts: Sequence[Prompt], clips: ClipSet) -> "Heard":
        """Scores the clips and their controls."""
        recorded = evaluator.score(prompts, clips)
        played = {audio: evaluator.score(prompts, clips.as_control(audio)) for audio in CONTROLS}
        return cls(recorded, played)

    def moved(self, audio: Audio) -> float:
        """Nats by which a control moves the answers on average."""
        return float(np.abs(self.controls[audio].logp - self.recorded.logp).mean())

    def told_from(self, audio: Audio) -> float:
        """AUROC of the clips of the first label against the same clips' controls, with the best prompt."""
        first = self.recorded.targets.truth == 0
        truth = np.repeat([0, 1], int(first.sum()))
        pairs = zip(self.recorded.logp, self.controls[audio].logp, strict=True)
        return max(
            auroc(truth, np.concatenate([_odds(one[first], 0), _odds(other[first], 0)]))
            for one, other in pairs
        )


def told_apart(table: ScoreTable) -> float:
    """AUROC of the labels, each against the rest and averaged, with the best prompt."""
    truth, labels = table.targets.truth, range(table.logp.shape[-1])
    return max(
        float(np.mean([auroc((truth != k).astype(int), _odds(one, k)) for k in labels]))
        for one in table.logp
    )


def _odds(logp: Array, label: int) -> Array:
    """``[clip]`` log-odds of one label against the others."""
    others = np.delete(logp, label, -1)
    return np.asarray(logp[:, label] - np.logaddexp.reduce(others, -1))


def ask_stock(
    evaluator: Evaluator, prompts: Sequence[Prompt], clips: Sequence[Clip]
) -> stack.StockAnswers | Finding | None:
    """What the installed library says by itself, for `check_company`; None where it is not asked.

    Of a model that runs here it loads weights of its own, so it comes before all that scores: see `stack.ask_stock`.
    """
    if not isinstance(evaluator, AudioScorer):
        return None
    return stack.ask_stock(evaluator, prompts, clips)


def check_loaded(
    evaluator: Evaluator, prompts: Sequence[Prompt]
) -> Generator[Finding, None, Evaluator]:
    """Path, weights, self-test and answer tokens of a model that runs here; of any other evaluator nothing.

    Returns:
        The evaluator that the other checks go on with: of a model that fails its self-test one without it.
    """
    if isinstance(evaluator, GenericScorer):
        yield _generic_path(evaluator)
        yield from stack.list_answers(evaluator, prompts)
    if not isinstance(evaluator, AudioScorer):
        return evaluator
    kind = evaluator.config.model_type
    text = f"packed: models of type {kind} have their own; its parity with the stock forward stands below (stock)"
    yield Finding("ok", "path", text)
    yield from stack.list_answers(evaluator, prompts)
    yield from stack.check_weights(evaluator)
    return (yield from stack.check_self_test(evaluator))


def _generic_path(scorer: GenericScorer) -> Finding:
    """Whether a model of the generic way shares prefixes, why, and its parity."""
    way, name = scorer.way, scorer.kind
    parity = (
        "" if way.parity is None else f" (parity on made-up clips: {way.parity:.1e} nats at most)"
    )
    text = (
        f"generic: models of type {name.model_type} have no packed path, {name.model_class} of transformers scores; "
        + ("prompts share a clip's prefix" if way.shared else "each pair is a forward of its own")
        + f": {way.why}{parity}"
    )
    return Finding("ok" if way.shared else "look", "path", text)


def check_hearing(
    evaluator: Evaluator, prompts: Sequence[Prompt], clips: ClipSet, reference: ClipSet | None
) -> Generator[Finding, None, bool]:
    """Whether audio arrives and is known, and the likely cause where it does not or is not.

    Args:
        evaluator: As `check_loaded` returns it, with no cache before it: what is kept is not what runs now.
        prompts: Those that it can score.
        clips: Clear ones, see `evaluators.splits.clearest`.
        reference: Clear clips whose labels are known to be right; None where there are none for the task.

    Returns:
        Whether audio arrives.
    """
    heard = Heard.of(evaluator, prompts, clips)
    arrives = yield from _check_audio(evaluator, heard)
    knows = arrives and (yield from _check_known(evaluator, heard, reference))
    if isinstance(evaluator, AudioScorer):
        lost, named = stack.is_lost(heard.recorded), False
        if lost or (arrives and not knows):
            named = yield from _check_templates(evaluator, heard.recorded, lost)
        if lost and not named:
            yield from stack.check_head(evaluator, heard.recorded)
    return arrives


def check_company(
    evaluator: Evaluator,
    table: ScoreTable,
    stock: stack.StockAnswers | Finding | None,
    arrives: bool,
) -> Iterator[Finding]:
    """Whether clips have the same answers alone, in a batch, and by the installed library's own forward.

    Args:
        evaluator: As for `check_hearing`.
        table: What it says of clips of several lengths.
        stock: What `ask_stock` returned.
        arrives: What `check_hearing` returned.
    """
    if isinstance(evaluator, AudioScorer) and stock is not None:
        yield from stack.check_stock(evaluator, table, stock, arrives)
    prompt = table.prompts[:1]
    by_length = sorted(table.clips, key=lambda clip: clip.duration_ms)
    half = by_length[: COMPANY // 2], by_length[::-1][: COMPANY // 2]
    mixed = [clip for pair in zip(*half, strict=True) for clip in pair]  # short ones beside long
    _forget(evaluator)
    together = evaluator.score(prompt, mixed).logp[0]
    apart = 0.0
    for i in range(min(TRIED_ALONE, len(mixed))):
        _forget(evaluator)
        alone = evaluator.score(prompt, [mixed[i]]).logp[0, 0]
        apart = max(apart, float(np.abs(np.exp(alone) - np.exp(together[i])).max()))
    served = isinstance(evaluator, Endpoint)
    exact = not served and evaluator.about().dtype in ("float32", "none")
    allowed = (EXACT if exact else ROUGH).probability
    seen = f"clips alone and among {len(mixed)} of other lengths: answers differ by {apart:.2g} in probability"
    if apart <= allowed:
        yield Finding("ok", "neighbours", seen)
        return
    yield Finding(
        "broken",
        "neighbours",
        f"{seen}, {allowed:g} is allowed: a clip's answer depends on what else is asked at the time, as where a batch"
        " is padded and the padding is heard",
        "let the server take one request at a time (vLLM: --max-num-seqs 1), or mend or change its version"
        if served
        else "give --dtype float32, and report it with the versions above",
    )


def _forget(evaluator: Evaluator) -> None:
    """What is kept from scores before does not count."""
    if isinstance(evaluator, AudioScorer | GenericScorer):
        evaluator.forget()


def _check_audio(evaluator: Evaluator, heard: Heard) -> Generator[Finding, None, bool]:
    """Whether audio arrives: what is heard, and that there is something to hear."""
    silence, shuffled = heard.moved("silence"), heard.moved("shuffled")
    by = f"silence in place of the clips moves the answers by {silence:.4f} nats, shuffled samples by {shuffled:.4f}"
    if max(silence, shuffled) < REACHES:
        yield _deaf(evaluator, heard, by)
        return False
    if min(silence, shuffled) < REACHES:
        yield Finding("broken", "audio", f"{by}: {SOUND_ALONE}", ANEW)
        return False
    yield Finding("ok", "audio", by)
    return True


def _deaf(evaluator: Evaluator, heard: Heard, by: str) -> Finding:
    """The finding on a model that no audio reaches."""
    if isinstance(evaluator, AudioScorer):
        where, fix = stack.where_lost(evaluator, heard.recorded.clips)
    elif isinstance(evaluator, GenericScorer):
        where = f"its processor, or {evaluator.kind.model_class} itself, drops it"
        fix = "download the model again with its processor's files, or try another version of transformers"
    else:
        where = "the server drops it"
        fix = (
            "name a model that takes input_audio, start the server with the model's audio processor, and look in"
            " its log for an argument that is ignored (audios= for audio=)"
        )
    return Finding("broken", "audio", f"{by}: audio does not reach the model; {where}", fix)


def _check_known(
    evaluator: Evaluator, heard: Heard, reference: ClipSet | None
) -> Generator[Finding, None, bool]:
    """Whether the labels of clear clips are told apart."""
    targets = heard.recorded.targets
    counts = np.bincount(targets.truth, minlength=len(targets.labels))
    label, prompts = targets.labels[0], len(heard.recorded.prompts)
    if counts.min() < MIN_CLEAR:
        text = (
            f"{counts.min()} clear clips of a label are too few to see whether they are told apart"
        )
        yield Finding("look", "hearing", text, f"give {MIN_CLEAR} and more of each label: --clips")
        return True
    told = told_apart(heard.recorded)
    seen = (
        f"{counts.sum()} clear clips: AUROC of the labels {told:.2f}, of {label} against silence"
        f" {heard.told_from('silence'):.2f} and against its own samples shuffled"
        f" {heard.told_from('shuffled'):.2f}, with the best of {prompts} prompts"
    )
    if told >= KNOWS:
        yield _by_accident(heard, seen, label) or Finding("ok", "hearing", seen)
        return True
    seen += f"; {KNOWS} is the least of a model that knows them"
    if reference is None:
        yield Finding(
            "look",
            "hearing",
            f"{seen}: the prompts, the labels of the clips, or the model may be the cause",
            "check that prompts and labels mean the same, and try the model on the shipped clips: --manifest data/demo",
        )
        return False
    if reference.clips != heard.recorded.clips:
        told = told_apart(evaluator.score(heard.recorded.prompts, reference))
    if told >= KNOWS:
        yield Finding(
            "look",
            "hearing",
            f"{seen}; those of the shipped clips it tells apart ({told:.2f}): the cause is the clips or their labels",
            "listen to some, and let opro.audit look for wrong labels, levels and lengths",
        )
        return True
    yield Finding(
        "broken",
        "hearing",
        f"{seen}: it hears sound but not what it is, as {UNTRAINED}",
        ANEW,
    )
    return False


def _by_accident(heard: Heard, seen: str, label: str) -> Finding | None:
    """Whether labels are told apart by something else than what is in the clips; None where nothing speaks for it."""
    if heard.told_from("shuffled") < KNOWS:
        return Finding("broken", "hearing", f"{seen}: {SOUND_ALONE}", ANEW)
    moved = heard.moved("silence")
    if moved >= WEAK:
        return None
    seen += f"; silence moves the answers by {moved:.3f} nats only"
    if heard.told_from("silence") >= KNOWS:
        return Finding("look", "hearing", f"{seen}: the model hardly hears, as {UNTRAINED}", ANEW)
    return Finding(
        "broken",
        "hearing",
        f"{seen} and is taken for {label}: labels are told apart by accident, as {UNTRAINED}",
        ANEW,
    )


def _check_templates(
    scorer: AudioScorer, table: ScoreTable, lost: bool
) -> Generator[Finding, None, bool]:
    """Whether the model knows under another chat template what it does not know under the one that scores use.

    Args:
        scorer: The model.
        table: What it says of clear clips under that template.
        lost: With no prompt it says any answer.
    """
    here = told_apart(table)
    enough = KNOWS if lost else max(KNOWS, here + TEMPLATE_GAIN)
    for name, other in stack.with_other_templates(scorer):
        there = other.score(table.prompts, table.clips)
        known = told_apart(there)
        other.forget()
        if known >= enough and not stack.is_lost(there):
            said = "it says no answer at all" if lost else f"with {here:.2f}"
            yield Finding(
                "broken",
                "template",
                f"{name} the model tells clear clips apart with AUROC {known:.2f}, with the chat template that scores"
                f" use {said}: trainer and scorer have different"
                " chat templates",
                stack.TRAIN_AGAIN,
            )
            return True
    return False
