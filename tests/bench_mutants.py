"""How many small faults the tests notice: python tests/bench_mutants.py [--modules metrics select] [--per-module 10]

Copies the source, changes one place at a time, and runs the tests of that module until one fails. Random changes are
drawn by a fixed seed, the same number for each module: a comparison turned or moved by one, a constant changed, a
condition negated, a call left out, min for max, plus for minus. `DIRECTED` changes turn round what the project
promises. Changes that cannot be noticed stand in `EQUIVALENT`, each with its reason, and are not counted. Run by hand;
its last table is in tests/README.md.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from mutants import ANY, DIRECTED, EQUIVALENT, MODULES  # noqa: E402

TIMEOUT_S = 300  # a change that makes the tests hang is noticed
TURNED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
TURNED |= {ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"}
OPPOSITE = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
EXCHANGED = {
    "min": "max",
    "max": "min",
    "argmin": "argmax",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
}


@dataclass(frozen=True)
class Mutant:
    """One change: `old` at `start` of the module's text becomes `new`."""

    module: str
    start: int
    old: str
    new: str
    line: int
    directed: bool = False

    def __str__(self) -> str:
        old, new = " ".join(self.old.split()), " ".join(self.new.split())
        return f"{self.module}:{self.line}  {old[:70]}  ->  {new[:70]}"


def mutants_of(module: str, text: str) -> Iterator[Mutant]:
    """Every random change that this module allows, in the order of its lines."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    raw = text.encode()

    def place(node: ast.AST) -> tuple[int, int]:
        begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return begin, starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def change(begin: int, end: int, new: str) -> Mutant:
        line = raw[:begin].count(b"\n") + 1
        return Mutant(module, begin, raw[begin:end].decode(), new, line)

    def between(left: ast.AST, right: ast.AST, new: str) -> Mutant:
        begin, end = place(left)[1], place(right)[0]
        inner = raw[begin:end].decode()
        lead, tail = len(inner) - len(inner.lstrip(" )")), len(inner) - len(inner.rstrip(" (\n"))
        return change(begin + lead, end - tail, new)

    tree = ast.parse(text)
    silent = _silent_nodes(tree)
    for node in ast.walk(tree):
        if id(node) in silent:
            continue
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in TURNED:
            yield between(node.left, node.comparators[0], TURNED[type(node.ops[0])])
        elif isinstance(node, ast.BinOp) and type(node.op) in OPPOSITE:
            if not isinstance(node.left, ast.Constant) or not isinstance(node.left.value, str):
                yield between(node.left, node.right, OPPOSITE[type(node.op)])
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            number = node.value
            yield change(
                *place(node), repr(number + 1 if isinstance(number, int) else number * 1.5 + 0.01)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield change(*place(node), repr(not node.value))
        elif isinstance(node, ast.If | ast.While | ast.IfExp):
            begin, end = place(node.test)
            yield change(begin, end, f"not ({raw[begin:end].decode()})")
        elif isinstance(node, ast.BoolOp):
            new = "or" if isinstance(node.op, ast.And) else "and"
            yield between(node.values[0], node.values[1], new)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield change(*place(node), "pass")
        elif isinstance(node, ast.Call):
            name = node.func
            of = (
                name.id
                if isinstance(name, ast.Name)
                else name.attr
                if isinstance(name, ast.Attribute)
                else ""
            )
            if of in EXCHANGED:
                end = place(name)[1]
                yield change(end - len(of), end, EXCHANGED[of])


def _silent_nodes(tree: ast.AST) -> set[int]:
    """Nodes whose change nobody is promised to notice: types, messages, logs, defaults of displays."""
    silent: set[int] = set()
    for node in ast.walk(tree):
        hidden: list[ast.AST] = []
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
            hidden = [node]
        elif (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            hidden = [node]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in (
            "log",
            "print",
            "warnings",
        ):
            hidden = [node]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if ast.unparse(node.value.func).split(".")[0] in ("log", "print", "warnings"):
                hidden = [node]
        elif isinstance(node, ast.AnnAssign) or isinstance(node, ast.arg):
            hidden = [node.annotation] if node.annotation else []
        elif isinstance(node, ast.FunctionDef):
            hidden = [*node.decorator_list, *([node.returns] if node.returns else [])]
        elif isinstance(node, ast.ClassDef):
            hidden = [*node.decorator_list]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in (
            "Literal",
            "NDArray",
            "Sequence",
        ):
            hidden = [node]
        for one in hidden:
            silent |= {id(inner) for inner in ast.walk(one)}
    return silent


def drawn(modules: list[str], per_module: int, seed: int) -> list[Mutant]:
    """The random mutants: the same for the same source and seed."""
    out = []
    for module in modules:
        text = (ROOT / module).read_text()
        found = [
            m for m in mutants_of(module, text) if not _equivalent(m, text) and _parses(m, text)
        ]
        picked = random.Random(f"{seed} {module}").sample(found, min(per_module, len(found)))
        out += sorted(picked, key=lambda m: m.start)
    return out


def directed(modules: list[str]) -> list[Mutant]:
    """The changes of `DIRECTED`. Its texts must be found in the source, each once."""
    out = []
    for module, old, new in DIRECTED:
        if module not in modules:
            continue
        text = (ROOT / module).read_text()
        if text.count(old) != 1:
            sys.exit(
                f"mutants.py: {old!r} stands {text.count(old)} times in {module}; expected once"
            )
        at = len(text[: text.index(old)].encode())
        out.append(Mutant(module, at, old, new, text[: text.index(old)].count("\n") + 1, True))
    return out


def changed(mutant: Mutant, text: str) -> str:
    """The module's text with the change."""
    raw = text.encode()
    end = mutant.start + len(mutant.old.encode())
    return (raw[: mutant.start] + mutant.new.encode() + raw[end:]).decode()


def _parses(mutant: Mutant, text: str) -> bool:
    try:
        ast.parse(changed(mutant, text))
    except SyntaxError:  # an operator over several lines
        return False
    return True


def _equivalent(mutant: Mutant, text: str) -> bool:
    line = text.splitlines()[mutant.line - 1]
    return any(
        module in (ANY, mutant.module) and fragment in line and new in ("", mutant.new)
        for module, fragment, new, _ in EQUIVALENT
    )


def copy_tree() -> Path:
    """A copy to be changed. What is not code is linked."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    for name in ("opro", "evaluators", "tests", "prompts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").mkdir()
    for path in (ROOT / "data").iterdir():
        if path.name in ("demo", "pocket"):
            (folder / "data" / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(
                path, folder / "data" / path.name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(path, folder / "data")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "runs").mkdir()
    return folder


def noticed(mutant: Mutant | None, tests: tuple[str, ...]) -> str:
    """The first test that fails with the change, or an empty text: nobody noticed."""
    folder = copy_tree()
    try:
        if mutant is not None:
            path = folder / mutant.module
            path.write_text(changed(mutant, path.read_text()))
        environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return "the tests hang"
        if done.returncode == 0:
            return ""
        lines = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
        return (lines or [done.stdout[-300:]])[0][:150]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Runs the mutants and prints those that survive, and killed / run by module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--modules", nargs="+", default=[], help="names as in `MODULES`, e.g. metrics select"
    )
    parser.add_argument("--per-module", type=int, default=10, help="random changes a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", choices=("random", "directed"))
    options = parser.parse_args()
    modules = [m for m in MODULES if not options.modules or Path(m).stem in options.modules]
    mutants = [] if options.only == "directed" else drawn(modules, options.per_module, options.seed)
    mutants += [] if options.only == "random" else directed(modules)
    wrong = noticed(None, tuple(dict.fromkeys(t for m in modules for t in MODULES[m])))
    if wrong:
        sys.exit(f"the tests fail without any change: {wrong}")
    killed: dict[tuple[str, bool], list[int]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, by in zip(
            mutants, pool.map(lambda m: noticed(m, MODULES[m.module]), mutants), strict=True
        ):
            counts = killed.setdefault((mutant.module, mutant.directed), [0, 0])
            counts[0] += bool(by)
            counts[1] += 1
            if not by:
                print(
                    f"SURVIVES {'directed' if mutant.directed else 'random'}  {mutant}", flush=True
                )
    print(f"\n{'module':44}{'random':>10}{'directed':>10}   killed / run, seed {options.seed}")
    for module in modules:
        cells = ["/".join(map(str, killed.get((module, kind), ["-"]))) for kind in (False, True)]
        print(f"{module:44}{cells[0]:>10}{cells[1]:>10}")
    for kind, name in ((False, "random"), (True, "directed")):
        k = sum(v[0] for (_, d), v in killed.items() if d == kind)
        n = sum(v[1] for (_, d), v in killed.items() if d == kind)
        print(f"{name}: {k} of {n} killed" + (f", {100 * k / n:.0f} %" if n else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
