"""Refuses names that the glossary in CONTRIBUTING.md does not allow, in everything that is shipped.

    python lint/check_names.py [--all]      --all lists every bare participle, not only the refused words

Refused are the words in backticks in the column "not" of the glossary and those of refused_names.txt, where they are a whole
name: of a variable, an argument, an attribute, a function or a class, leading underscores aside. Other participles that stand
alone as a name (`pulled` for a version) are counted and may be at most 5 of 1,000 assigned names: `locked_version` says more.

Not judged are names that something outside the code fixes: the `FIXED_FIELDS`, arguments and attributes that bear the name of
an annotated field, since they carry its value (`what` of an error), and the feature code, whose every byte belongs to its hash.
Participles that are annotated fields do not count.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFUSED_NAMES = Path(__file__).with_name("refused_names.txt")
FEATURE_CODE = ROOT / "amp_core" / "features.py"
FOLDERS = ("amp_core", "service", "workers", "migrations", "bench")
PARTICIPLES_PER_1000 = 5.0
NAMED_NODES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
FIXED_FIELDS = frozenset(["after", "before", "figures", "shown", "tried", "what", "where"])
"""Refused words that are keys of a JSON document or attributes of the public API."""
NO_PARTICIPLES = frozenset(["embed", "expected", "feed", "need", "red", "seed", "shed", "shared", "speed", "unexpected"])
"""Words that end like a participle and are none, or are a noun of every test and error: `expected`."""


def read_refused_words(glossary: str) -> frozenset[str]:
    """The words in backticks in the last column of the glossary's rows, which may not be names."""
    section = glossary.split("## Names", 1)[1].split("\n## ", 1)[0]
    cells = [line.rstrip("|").rsplit("|", 1)[-1] for line in section.splitlines() if line.startswith("|")]
    return frozenset(word for cell in cells for word in re.findall(r"`(\w+)`", cell))


def iterate_fields(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The annotated fields in the class bodies of a module, with their lines."""
    for node in ast.walk(tree):
        for line in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                yield line.target.id, line.lineno


def iterate_names(tree: ast.AST, fields: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Every name that a module assigns and that `fields` does not fix, with its line."""
    in_body = {
        id(line.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for line in node.body
        if isinstance(line, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in in_body:
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr not in fields:
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg) and node.arg not in fields:
            yield node.arg, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest, node.lineno
        elif isinstance(node, NAMED_NODES) and node.name:
            yield node.name, node.lineno


def bare_word(name: str) -> str:
    """A name without what makes it another name but not another word: `_found2` is `found`."""
    return name.strip("_0123456789").lower()


def main(list_all: bool) -> int:
    """Print what is refused and return the exit code."""
    refused = read_refused_words((ROOT / "CONTRIBUTING.md").read_text()) | set(REFUSED_NAMES.read_text().split())
    names = 0
    faults: list[str] = []
    participles: Counter[str] = Counter()
    paths = sorted(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if path != FEATURE_CODE and "node_modules" not in path.parts
    )
    trees = {path: ast.parse(path.read_text()) for path in paths}
    fields_of = {path: list(iterate_fields(tree)) for path, tree in trees.items()}
    fields = frozenset(name for rows in fields_of.values() for name, _ in rows)
    for path, tree in trees.items():
        assigned_names = list(iterate_names(tree, fields))
        names += len(assigned_names)
        for name, line in (*assigned_names, *(field for field in fields_of[path] if field[0] not in FIXED_FIELDS)):
            if bare_word(name) in refused:
                faults.append(f"{path.relative_to(ROOT)}:{line}: {name!r} says too little; see the glossary in CONTRIBUTING.md")
        for name, line in assigned_names:
            is_participle = re.fullmatch(r"_*([A-Z]?[a-z]+ed|[A-Z]+ED)[_0-9]*", name)
            if is_participle and bare_word(name) not in NO_PARTICIPLES | refused:
                participles[name] += 1
                if list_all:
                    print(f"{path.relative_to(ROOT)}:{line}: {name}")
    share = 1000 * (participles.total() + len(faults)) / names
    if share > PARTICIPLES_PER_1000:
        faults.append(f"{share:.1f} of 1,000 names are bare participles or refused words, {PARTICIPLES_PER_1000:g} may be: ")
        faults[-1] += ", ".join(f"{name} ({count})" for name, count in participles.most_common(20))
    print("\n".join(faults) if faults else f"names: {names}, none refused, {share:.1f} of 1,000 bare participles")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main("--all" in sys.argv[1:]))
