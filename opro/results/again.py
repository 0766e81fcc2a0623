"""A finished run that is shown again: told by its files, without the libraries that score."""

from collections.abc import Mapping

from evaluators.audio import DECODERS
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.identity import versions
from evaluators.manifest import verify
from opro.problem import asked_identity, open_data
from opro.results.run_folder import SUMMARY, RunFolder
from opro.settings import OptimizeSettings

ELSEWHERE = ("fake", "endpoint:", "python:")  # how checkpoints begin that have no weights here
OF_THE_CARD = "kernels"  # of what scored, the one that is no library


def finished_run(settings: OptimizeSettings) -> RunFolder | None:
    """The finished run of a command, where clips, seeds, weights and libraries are those that it was made with.

    None wherever one is another, or cannot be told without a scorer: opening the problem finds out, and says it. Who
    would propose now, and on which device would be scored, is not looked at: nothing is.

    Raises:
        UserError: Clips, seeds or checkpoint cannot be used, or the run was started with other settings.
    """
    if not (settings.folder / SUMMARY).is_file() or not _is_told_by_files(settings):
        return None
    data = open_data(settings)
    search, holdout = data.halves(settings)
    verify([*search, *holdout])
    asked = asked_identity(settings, data)
    checkpoint = open_checkpoint(settings.checkpoint, settings.adapter, settings.quantization)
    with RunFolder.open(settings.folder, settings.config, data.task) as folder:
        known = {k: v for k, v in (folder.history.header or {}).items() if k in asked}
        same = (
            folder.summary is not None
            and known == asked
            and folder.weights == checkpoint.digest
            and _is_installed(folder.scored_with or {OF_THE_CARD: "unknown"})
        )
        return folder if same else None


def _is_told_by_files(settings: OptimizeSettings) -> bool:
    one = len(settings.checkpoints) == 1 and not settings.checkpoint.startswith(ELSEWHERE)
    return one and settings.presentations is None


def _is_installed(scored_with: Mapping[str, str]) -> bool:
    """Whether the libraries of a run's scores are here, in its versions."""
    libraries = {name: v for name, v in scored_with.items() if name != OF_THE_CARD}
    here = versions(*libraries) | {n: v for n, v in DECODERS.items() if n in libraries}
    return libraries == here and bool(libraries)
