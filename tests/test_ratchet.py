"""Numbers of the source that may only fall: `pytest -s tests/test_ratchet.py` prints today's."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("opro", "evaluators", "data")
EXPORTED = "opro/exported/"  # scripts for other places
KERNELS = "evaluators/audio_lm/kernels.py"  # Triton's arguments are many by nature
MOST = {  # upper bounds: lower them whenever the source allows
    "functions with more than 5 arguments": 9,
    "functions with more than 8 arguments": 0,
    "lines of the longest function": 63,
    "lines of a function, 90th percentile": 29,
    "imports inside functions": 81,
    "imports of our own modules inside functions": 23,
    "hasattr and getattr in opro": 10,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> list[tuple[str, ast.Module]]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    named = [(path.relative_to(ROOT).as_posix(), path) for path in paths]
    return [
        (name, ast.parse(path.read_text(encoding="utf-8")))
        for name, path in named
        if not name.startswith(EXPORTED)
    ]


def functions(tree: ast.AST) -> Iterator[Function]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def arguments(function: Function) -> int:
    """All that a caller can give, but for self and cls."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args)]
    own = names[:1] in (["self"], ["cls"])
    return len(names) - own + len(given.kwonlyargs) + bool(given.vararg) + bool(given.kwarg)


def lines(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def inner_imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    found = {}
    for function in functions(tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found[node.lineno, node.col_offset] = node
    return iter(found.values())


def is_ours(node: ast.Import | ast.ImportFrom) -> bool:
    if isinstance(node, ast.ImportFrom) and node.level:
        return True
    names = (
        [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
    )
    return any(name.split(".")[0] in FOLDERS for name in names)


def measured() -> dict[str, float]:
    found = [(name, f) for name, tree in trees() for f in functions(tree)]
    counts = [arguments(f) for name, f in found if name != KERNELS]
    sizes = [lines(f) for _, f in found]
    imports = [node for _, tree in trees() for node in inner_imports(tree)]
    probes = [
        node
        for name, tree in trees()
        for node in ast.walk(tree)
        if name.startswith("opro/")
        and isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
    ]
    return {
        "functions with more than 5 arguments": sum(n > 5 for n in counts),
        "functions with more than 8 arguments": sum(n > 8 for n in counts),
        "lines of the longest function": max(sizes),
        "lines of a function, 90th percentile": float(np.quantile(sizes, 0.9)),
        "imports inside functions": len(imports),
        "imports of our own modules inside functions": sum(map(is_ours, imports)),
        "hasattr and getattr in opro": len(probes),
    }


@pytest.fixture(scope="module")
def today() -> dict[str, float]:
    found = measured()
    print()
    for name, value in found.items():
        print(f"{value:8.1f}  at most {MOST[name]:6}  {name}")
    return found


@pytest.mark.parametrize("name", MOST)
def test_the_number_does_not_rise(today, name):
    assert today[name] <= MOST[name]


def test_what_is_counted():
    tree = ast.parse(
        "class C:\n"
        "    def f(self, a, /, b, *c, d=1, **e):\n"
        "        import os\n"
        "        def g(x):\n"
        "            from opro import cli\n"
        "            return x\n"
        "    async def h(self): ...\n"
        "import json\n"
    )
    assert [(f.name, arguments(f), lines(f)) for f in functions(tree)] == [
        ("f", 5, 5),
        ("h", 0, 1),
        ("g", 1, 3),
    ]
    assert [is_ours(node) for node in inner_imports(tree)] == [False, True]
