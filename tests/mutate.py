"""Breaks the code in small ways, one at a time, and reports which test notices; one that none does lacks a test.

    make coverage                           # which test runs which line
    python tests/mutate.py --output docs/results/mutations.md

What is broken is drawn by the seed, as often in each room and as likely in each file: a comparison, an operator, a
number, a condition, a statement that is left out. Each break is made in a copy of the repository, where the tests that
run its line are run until one fails, those of its room first, and then all of its room: what is cached is run once, and
seems to be the first test's alone. Interrupted, it goes on with the same output.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
LEFT_BEHIND = (".git", "outputs", "build", "__pycache__", ".hypothesis")
ROOMS = ("experts", "tuner", "episodes", "meta_tuning")
LONGEST_HOURS = 0.5  # a break that makes the tests run on and on is caught by that
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Break:
    """One way to break a file: other text in place of some, all on the lines `first` to `last`."""

    file: Path
    first: int
    last: int
    columns: tuple[int, int]
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Break the file of a copy of the repository."""
        lines = (ROOT / self.file).read_text(encoding="utf-8").splitlines(keepends=True)
        before = "".join(lines[: self.first - 1]) + _cut(lines[self.first - 1], None, self.columns[0])
        after = _cut(lines[self.last - 1], self.columns[1], None) + "".join(lines[self.last :])
        (root / self.file).write_text(before + self.new + after, encoding="utf-8")

    def __str__(self) -> str:
        old, new = (re.sub(r"\s+", " ", text).replace("|", "\\|") for text in (self.old, self.new))
        return f"`{self.file}:{self.first}` `{old[:60]}` → `{new[:60]}`"


def breaks(file: Path) -> list[Break]:
    """All ways to break a file."""
    source = (ROOT / file).read_text(encoding="utf-8")
    found = []
    for node, replacement in _changes(ast.parse(source), source):
        old = ast.get_source_segment(source, node)
        if old is not None and old != replacement:
            columns = (node.col_offset, node.end_col_offset or 0)
            found.append(Break(file, node.lineno, node.end_lineno or node.lineno, columns, old, replacement))
    return found


def _changes(tree: ast.Module, source: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    for node in _code(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
            yield node, ast.unparse(ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators))  # type: ignore[list-item]
        elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
            yield node, f"({ast.unparse(ast.BinOp(node.left, SWAPS[type(node.op)](), node.right))})"  # type: ignore[arg-type]
        elif isinstance(node, ast.BoolOp):
            yield node, f"({ast.unparse(ast.BoolOp(SWAPS[type(node.op)](), node.values))})"  # type: ignore[arg-type]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield node, f"({ast.unparse(node.operand)})"
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            yield node, str(not node.value) if isinstance(node.value, bool) else repr(node.value + 1)
        elif isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Compare | ast.BoolOp):
            yield node.test, f"(not ({ast.get_source_segment(source, node.test)}))"
        elif isinstance(node, ast.AugAssign | ast.Raise | ast.Continue) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ):
            yield node, "pass"


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """What is run: no annotations, texts, or imports for types alone."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "type_params", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield child
            yield from _code(child)


def draw(room: str, count: int, draws: random.Random) -> list[Break]:
    """Breaks of a room, any file as likely as any other."""
    possible = [breaks(file.relative_to(ROOT)) for file in sorted((ROOT / "smat_peft" / room).rglob("*.py"))]
    drawn: dict[Break, None] = {}
    while len(drawn) < count:
        drawn[draws.choice(draws.choice([of_file for of_file in possible if of_file]))] = None
    return list(drawn)


class Covered:
    """Which tests run which line, as pytest-cov has written it."""

    def __init__(self, path: Path) -> None:
        self.data = CoverageData(str(path))
        self.data.read()

    def tests(self, broken: Break) -> list[str]:
        """Tests of the lines of a break, or of the whole file where imports alone run it; first its room's."""
        contexts = self.data.contexts_by_lineno(str(broken.file))
        of_lines = {name for line in range(broken.first, broken.last + 1) for name in contexts.get(line, ())}
        names = of_lines - {""} or {name for of_line in contexts.values() for name in of_line} - {""}
        room = broken.file.parts[1]
        tests = {name.rpartition("|")[0] for name in names}  # what follows is setup, run or teardown
        return sorted(tests, key=lambda name: (f"tests/{room}/" not in name, name))


def run(broken: Break, tests: Sequence[str]) -> str:
    """The test that notices a break, of those given or else of its room, or an empty string."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        broken.apply(copy)
        return _noticed(copy, tests) or _noticed(copy, [f"tests/{broken.file.parts[1]}"])


def _noticed(copy: Path, tests: Sequence[str]) -> str:
    """The first of some tests that fails in a copy of the repository, or an empty string."""
    (copy / "tests.txt").write_text("\n".join(tests))
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-cov", "@tests.txt"]
    try:
        ended = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_HOURS * 3600,
        )
    except subprocess.TimeoutExpired:
        return "it never ends"
    if ended.returncode == 0:
        return ""
    if "ERROR: not found: " in ended.stdout + ended.stderr:
        raise SystemExit(f"`make coverage` is not of this code:\n{ended.stdout}{ended.stderr}")
    noticed = re.search(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    return noticed[1] if noticed else "the tests break off"


def main() -> int:
    """Break, test, report; the exit status says whether enough is noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=15, help="Breaks of each room.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.95, help="Share that has to be noticed.")
    parser.add_argument("--coverage", type=Path, default=ROOT / ".coverage", help="What pytest-cov has written.")
    parser.add_argument("--output", type=Path, default=Path("outputs/mutations.md"))
    arguments = parser.parse_args()
    covered, draws = Covered(arguments.coverage), random.Random(arguments.seed)
    done = arguments.output.read_text(encoding="utf-8") if arguments.output.exists() else ""
    rows, noticed_by = [], []
    for room in ROOMS:
        for broken in draw(room, arguments.each, draws):
            known = re.search(rf"^\| {re.escape(str(broken))} \| (.*) \|$", done, re.MULTILINE)
            noticed = known[1].strip("`") if known else run(broken, covered.tests(broken)) or "NOTHING"
            noticed_by.append(noticed)
            rows.append(f"| {broken} | `{noticed}` |")
            print(rows[-1], flush=True)
            share = 1 - noticed_by.count("NOTHING") / len(noticed_by)
            head = f"{len(rows)} breaks, seed {arguments.seed}: {share:.0%} noticed."
            report = [
                f"# Which test notices a break of the code\n\n{head}\n",
                "| break | noticed by |",
                "| --- | --- |",
            ]
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text("\n".join([*report, *rows, ""]), encoding="utf-8")
    print(head)
    return 0 if share >= arguments.least else 1


def _cut(line: str, start: int | None, end: int | None) -> str:
    """A part of a line by columns as `ast` counts them, which are bytes."""
    return line.encode()[start:end].decode()


if __name__ == "__main__":
    sys.exit(main())
