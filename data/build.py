"""Builds a clip set from recordings: `python -m data.build RECIPE --out DIR`

RECIPE is a name under data/recipes or a YAML file:

    factorial         4 durations x 5 SNRs x 2 classes, 2,000 clips
    bank              the published 22 one-factor conditions of 970 base clips
    crossed, clean    the first study's 640 and 160 clips, with splits by source
    import            manifests of the first study (*_metadata.csv), with splits by source
    debian            recordings under free licences, fetched from Debian packages: real data in one command
    demo              the clips that ship with the project
    folder            finished clips of your own, as they are: --speech DIR --other DIR, or --clips PLACE

Recordings are given in the recipe or by --recordings, which may be repeated: a folder or CSV file (path, label,
category, source_id), or LAYOUT=DIR with the layouts voxconverse, esc50, musan, gtzan and fma.
An interrupted build goes on where it was with the same command. The same recipe and recordings give the same bytes,
whatever the number of processes.

PLACE is a folder whose sub-folders are labels, a table (path,label), JSON lines of NeMo, ms-swift or LLaMA-Factory, a
Kaldi directory, a folder saved with `datasets`, or hub:NAME. --speech and --other take each of these, too.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluators.errors import PauseError, UserError
from evaluators.files import check_folder, read_yaml
from evaluators.manifest import SPLITS
from evaluators.tasks import task_named
from opro.cli import Parser, hand_over, run_verb

from .building import clip_set, debian, folder, import_study
from .building.dev_split import outline_of_recipe, registered
from .building.finished import FIELDS, Names
from .building.readers import parse_collections
from .building.recipe import Import, Made, Packages, read_recipe, recipe_path


def run(args: argparse.Namespace) -> int:
    """Reads the recipe and does what its design asks for; returns the exit code."""
    own = args.recipe == FOLDER
    path = None if own else recipe_path(args.recipe)
    _check_flags(args, own)
    check_folder(args.out, "--out")
    if (args.out / "manifest.csv").exists() != args.check:
        raise UserError(
            f"--out {str(args.out)!r} holds {'no' if args.check else 'a'} manifest.csv; "
            + ("--check compares with one" if args.check else "remove it first, or use --check")
        )
    if args.processes < 1:
        raise UserError(f"--processes is {args.processes}; expected 1 or more")
    if path is None:
        return _folder(args)
    raw = read_yaml(path)
    if isinstance(raw, dict) and raw.get("design") == "matched":
        return _demo(path, args)
    recipe = read_recipe(path)
    if isinstance(recipe, Made):
        return _build(recipe, args)
    if args.renderings is not None:
        raise UserError(
            "--renderings is for sets that are built from recordings; this recipe copies"
        )
    if args.check:
        raise UserError("--check is for sets that are built from recordings; this recipe copies")
    if isinstance(recipe, Packages):
        chosen = debian.choose(recipe, args.packages)
        told = "\n".join(debian.outline(chosen)) if args.dry_run else debian.fetch(chosen, args.out)
        print(told)
        _answer(args, told.splitlines())
        return 0
    return _import(recipe, args)


def _answer(args: argparse.Namespace, lines: Sequence[str] = (), clips: int | None = None) -> None:
    """What ``--json`` prints: the plan of a dry run, or the clip set with what was said of it."""
    if args.dry_run:
        hand_over({"dry_run": True, "folder": str(args.out), "plan": list(lines)})
        return
    paths = {"folder": str(args.out), "manifest": str(args.out / "manifest.csv")}
    hand_over({"clips": clips, "said": list(lines), "paths": paths})


FOLDER, MY_CLIPS = "folder", "my_clips"
OWN_FLAGS = (
    "speech",
    "other",
    "clips",
    "positive",
    "map",
    "source",
    "splits",
    "task",
)  # of `folder` alone
RECIPE_FLAGS = ("recordings", "packages", "check", "renderings")


def _check_flags(args: argparse.Namespace, own: bool) -> None:
    """Raises a UserError where a flag means nothing for the recipe."""
    for name in RECIPE_FLAGS if own else OWN_FLAGS:
        if getattr(args, name):
            cure = "it takes --speech, --other and --clips" if own else f"only for {FOLDER!r}"
            raise UserError(f"--{name} means nothing for {args.recipe!r}; {cure}")


def _folder(args: argparse.Namespace) -> int:
    names = Names(_pairs("--map", args.map, FIELDS), args.root)
    shares = {"train": 0.6, "dev": 0.2, "test": 0.2}
    if args.splits:
        shares = _shares(args.splits)
    settings = folder.FolderSettings(
        args.out,
        args.speech,
        args.other,
        args.clips,
        args.positive,
        args.source,
        names,
        shares,
        task_named(args.task or "speech"),
    )
    plan = folder.plan_folder(settings)
    links = 0 if args.dry_run else folder.build_folder(settings, plan)
    lines = folder.outline(plan, settings)
    print("\n".join(lines))
    _answer(args, lines, len(plan.rows))
    if not args.dry_run:
        about = f", {links:,} of them hard links to your files" if links else ""
        print(
            f"wrote {args.out}, {len(plan.rows):,} clips{about}; next: python -m data.audit {args.out}"
            + (f" --task {args.task}" if args.task else "")
        )
    return 0


def _pairs(flag: str, texts: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """``NAME=TEXT`` of a flag, each name once."""
    out: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not value or name not in known or name in out:
            raise UserError(
                f"{flag} {text!r}: expected NAME=TEXT, each name once, of {', '.join(known)}"
            )
        out[name] = value
    return out


def _shares(text: str) -> dict[str, float]:
    """Shares of the splits, as in ``dev=0.5,test=0.5``; of those that are not named none."""
    found = _pairs("--splits", text.split(","), SPLITS)
    try:
        shares = {name: float(value) for name, value in found.items()}
    except ValueError:
        shares = {}
    if not shares or not all(0 <= s < math.inf for s in shares.values()) or not shares.get("dev"):
        raise UserError(
            f"--splits {text!r}; expected shares of zero or more, of dev above zero, as in"
            " train=0.6,dev=0.2,test=0.2"
        )
    return {name: shares.get(name, 0.0) for name in SPLITS}


def _build(recipe: Made, args: argparse.Namespace) -> int:
    if args.recordings:
        recipe = replace(recipe, recordings=parse_collections(args.recordings))
    if args.renderings is not None:
        if not 1 <= args.renderings <= 100:
            raise UserError(f"--renderings is {args.renderings}; expected 1 to 100")
        recipe = replace(recipe, renderings=args.renderings)
    if args.dry_run:
        lines = outline_of_recipe(recipe, args.out)
        print("\n".join(lines))
        _answer(args, lines)
        return 0
    if args.check:
        return _report(clip_set.rebuild_and_compare(recipe, args.out, args.processes))
    with registered(recipe, args.out):
        count = clip_set.build(recipe, args.out, args.processes)
    _answer(args, clips=count)
    print(f"wrote {args.out}, {count:,} clips; check it with: python -m data.audit {args.out}")
    return 0


def _import(recipe: Import, args: argparse.Namespace) -> int:
    manifests = tuple(map(Path, args.recordings)) or recipe.manifests
    recipe = replace(recipe, manifests=manifests, root=args.root or recipe.root)
    study = import_study.read_study(recipe, args.out)
    if args.dry_run:
        lines = study.outline()
        print("\n".join(lines))
        _answer(args, lines)
        return 0
    import_study.write_study(study, args.out)
    _answer(args, clips=len(study.rows))
    print(f"wrote {args.out}, {len(study.rows)} clips; check it: python -m data.audit {args.out}")
    return 0


def _demo(path: Path, args: argparse.Namespace) -> int:
    if args.dry_run:
        raise UserError("--dry-run is for other recipes; demo is fixed: 1,800 clips, 5.5 MB")
    if args.renderings is not None:
        raise UserError(
            "--renderings is for other recipes; that of demo stands in data/recipes/demo.yaml"
        )
    demo_clips = _makers()
    if len(args.recordings) != 1:
        raise UserError("recipe demo is built from one folder: give --recordings DIR once")
    folder = Path(args.recordings[0])
    if args.check:
        return _report(demo_clips.rebuild_and_compare(path, folder, args.out))
    demo_clips.build(path, folder, args.out)
    _answer(args)
    print(f"wrote {args.out}; check it with: python -m data.audit {args.out}")
    return 0


def _makers() -> Any:
    """The tool that made the shipped clips; it is part of a checkout, not of an installed wheel."""
    try:
        from .makers import demo_clips
    except ImportError:
        raise UserError(
            "this needs data/makers, which only a checkout of the project has"
        ) from None
    return demo_clips


def _report(different: Sequence[str]) -> int:
    names = f": {', '.join(different[:10])}" if different else ""
    print(f"{len(different)} clips differ{names}")
    hand_over({"different": list(different)})
    return 1 if different else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("recipe", help="folder, name of a recipe under data/recipes, or a YAML file")
    add("--out", type=Path, help=f"folder to write (folder: default {MY_CLIPS})")
    text = "recordings, instead of the recipe's; may be repeated (import: the CSV files)"
    add("--recordings", action="append", default=[], metavar="[LAYOUT=]DIR", help=text)
    add("--root", type=Path, help="import, folder: what the paths in a table are relative to")
    text = "debian: packages separated by commas, or all (default: the recipe's)"
    add("--packages", help=text)
    for name, text in {
        "speech": "folder: clips that are speech; may be repeated",
        "other": "folder: clips that are not; may be repeated",
        "clips": "folder: clips whose sub-folder, column or key tells the label; may be repeated",
    }.items():
        add(f"--{name}", action="append", default=[], metavar="PLACE", help=text)
    text = (
        "folder: a label of --clips that is speech, where its name does not say so; may be repeated"
    )
    add("--positive", action="append", default=[], metavar="NAME", help=text)
    text = "folder: task whose labels --clips has, or a task file (default: speech)"
    add("--task", metavar="NAME", help=text)
    text = f"folder: what a column is called; NAME is one of {', '.join(FIELDS)}; may be repeated"
    add("--map", action="append", default=[], metavar="NAME=COLUMN", help=text)
    text = (
        "folder: pattern whose group, found in a clip's name, is its speaker or recording; may be repeated;"
        " 'file': every file is one of its own"
    )
    add("--source", action="append", default=[], metavar="REGEX", help=text)
    text = "folder: shares by source (default: train=0.6,dev=0.2,test=0.2)"
    add("--splits", metavar="dev=X,...", help=text)
    text = (
        "how often clips of dev and test are rendered, in place of the recipe's: 1 is the manifest, further ones are"
        " other cuts of the same sources, in renderings.csv"
    )
    add("--renderings", type=int, metavar="R", help=text)
    text = "processes that decode and write (default: %(default)s)"
    add("--processes", type=int, default=os.cpu_count() or 1, help=text)
    text = "print cells, counts, sources and what is missing"
    add("--dry-run", action="store_true", help=text)
    text = "rebuild elsewhere and compare with --out, write nothing"
    add("--check", action="store_true", help=text)
    args = parser.parse_args(argv)
    if args.out is None and args.recipe != FOLDER:
        parser.error("--out is missing: the folder to write")
    args.out = args.out or Path(MY_CLIPS)

    def whole() -> int:
        try:
            return run(args)
        except OSError as error:
            raise PauseError(
                f"{str(error.filename2 or error.filename or args.out)!r} cannot be used ({error.strerror}); make room"
                " or mend the folder, then give the same command again"
            ) from None

    return run_verb(whole)


if __name__ == "__main__":
    sys.exit(run_verb(main))
