"""The documents hold: their examples run, their links lead somewhere, what they quote is the code.

Fenced blocks that count as Python:

- a block with ``>>>`` is a doctest; the blocks of one document share their names, top to bottom;
- a block opened as ``python run`` is run as it stands, in its turn, with the same names;
- a block whose first line is ``# path.py:function`` quotes code, which must stand there so;
- any other ``python`` block is a fault, since nothing would check it.

In the text, ``path.py:function`` names a function, class or constant of the repository.
"""

import ast
import doctest
import importlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "subquad"
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

FENCE = re.compile(r"^( *)(```+)(.*)$")
QUOTE = re.compile(r"^# (\S+\.py):([\w.]+)$")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PLACE = re.compile(r"^([\w./-]+\.(?:py|md|toml))(?::([A-Za-z_][\w.]*))?$")
DOTTED = re.compile(r"^subquad(\.[A-Za-z_]\w*)+(?=\(|$)")
PLACEHOLDER = re.compile(r"@[A-Z]+@")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def same_settings_afterwards() -> Iterator[None]:
    """Keep what a document does to torch's settings away from other tests."""
    dtype, random = torch.get_default_dtype(), torch.get_rng_state()
    yield
    torch.set_default_dtype(dtype)
    torch.set_rng_state(random)
    torch.set_printoptions(profile="default")


def split_fences(text: str) -> tuple[str, list[tuple[int, str, str]]]:
    """Return the text without fenced blocks, and each block as (line, language, content)."""
    outside: list[str] = []
    blocks: list[tuple[int, str, str]] = []
    inside: tuple[int, str, str] | None = None
    content: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fence = FENCE.match(line)
        if inside is None and fence:
            inside, content = (number + 1, fence[2], fence[3].strip()), []
        elif inside is not None and fence and fence[2] == inside[1] and not fence[3]:
            blocks.append((inside[0], inside[2], textwrap.dedent("\n".join(content)) + "\n"))
            inside = None
        elif inside is not None:
            content.append(line)
        else:
            outside.append(line)
    assert inside is None, f"the fence before line {inside and inside[0]} is never closed"
    return "\n".join(outside), blocks


def run_examples(text: str, name: str) -> str:
    """Run all examples of a document in one namespace and return the report of what failed."""
    parser, report = doctest.DocTestParser(), []
    names: dict[str, object] = {"__name__": "__main__"}
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for line, language, content in split_fences(text)[1]:
        if language == "python run":
            exec(compile("\n" * (line - 1) + content, name, "exec"), names)
        if ">>>" not in content:
            continue
        # A name of its own: a traceback through an earlier block's function must find that block.
        test = parser.get_doctest(content, {}, f"{name}:{line}", name, line - 1)
        test.globs = names
        runner.run(test, out=report.append, clear_globs=False)
    return "".join(report)


def find_file(place: str, document: Path) -> Path | None:
    """Look for ``place`` in the package, the repository and beside the document."""
    candidates = [folder / place for folder in (PACKAGE, ROOT, DOCS, document.parent)]
    return next((path for path in candidates if path.is_file()), None)


def find_node(path: Path, name: str) -> ast.AST | None:
    """Return the function, class or assignment of that (dotted) name in a Python file."""
    node: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        for child in ast.iter_child_nodes(node):
            targets = [*getattr(child, "targets", []), getattr(child, "target", None)]
            known = [getattr(child, "name", None), *(getattr(t, "id", None) for t in targets)]
            if part in known:
                node = child
                break
        else:
            return None
    return node


def faulty_quotes(text: str, document: Path) -> list[str]:
    """Return one line for each Python block that is neither a doctest nor a true quotation."""
    faults = []
    for line, language, content in split_fences(text)[1]:
        if language != "python" or ">>>" in content:
            continue
        first, _, quoted = content.partition("\n")
        place = QUOTE.match(first)
        if place is None:
            faults.append(f"line {line}: no doctest, and no '# path.py:function' on top")
            continue
        path = find_file(place[1], document)
        node = None if path is None else find_node(path, place[2])
        if path is None or node is None:
            faults.append(f"line {line}: there is no {first[2:]}")
            continue
        source = path.read_text(encoding="utf-8").splitlines()
        source = source[node.lineno - 1 : node.end_lineno]
        # Layout may differ, so that a long line can be broken; the characters may not.
        if "".join(quoted.split()) not in "".join("".join(source).split()):
            faults.append(f"line {line}: {first[2:]} does not read so")
    return faults


def faulty_places(text: str, document: Path) -> list[str]:
    """Return the files, functions and dotted names in code spans that do not exist."""
    faults = []
    for span in CODE.findall(split_fences(text)[0]):
        place = PLACE.match(span)
        if place and ("/" in place[1] or place[2]):
            path = find_file(place[1], document)
            if path is None or (place[2] and find_node(path, place[2]) is None):
                faults.append(f"there is no {span}")
        dotted = DOTTED.match(span)
        if dotted and not place and not importable(dotted[0]):
            faults.append(f"there is no {dotted[0]}")
    return faults


def importable(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(
            importlib.import_module(name)
        )
    except ImportError:
        return bool(module) and "." in module and _is_attribute_of_attribute(module, attribute)


def _is_attribute_of_attribute(name: str, attribute: str) -> bool:
    module, _, outer = name.rpartition(".")
    try:
        return hasattr(getattr(importlib.import_module(module), outer, None), attribute)
    except ImportError:
        return False


def faulty_links(text: str, document: Path) -> list[str]:
    """Return the relative links that lead nowhere, be it a file or a heading in one."""
    faults = []
    for link in LINK.findall(split_fences(text)[0]):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        path = (document.parent / target).resolve() if target else document
        if not path.exists() or not path.is_relative_to(ROOT):
            faults.append(f"{link} leads nowhere")
        elif anchor and path.suffix == ".md":
            content = text if path == document else path.read_text(encoding="utf-8")
            if anchor not in anchors(content):
                faults.append(f"{link}: no such heading")
    return faults


def placeholders(text: str, document: Path) -> list[str]:
    """Return the places that still wait for what is to be put there, such as a table of results."""
    return [f"{found} is still to be filled" for found in PLACEHOLDER.findall(text)]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    headings = HEADING.findall(split_fences(text)[0])
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def test_there_are_documents():
    assert "docs/tour.md" in NAMES
    assert "docs/questions.md" in NAMES


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_examples_run(document):
    report = run_examples(document.read_text(encoding="utf-8"), document.name)
    assert not report, report


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_python_is_run_or_quoted_truly(document):
    assert faulty_quotes(document.read_text(encoding="utf-8"), document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_named_places_exist(document):
    assert faulty_places(document.read_text(encoding="utf-8"), document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document):
    assert faulty_links(document.read_text(encoding="utf-8"), document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_nothing_is_left_to_be_filled(document):
    assert placeholders(document.read_text(encoding="utf-8"), document) == []


HERE = DOCS / "a.md"


def test_a_wrong_example_is_caught():
    text = "```python run\nx = 1\n```\nand\n```python\n>>> x + 1\n3\n```\n"
    report = run_examples(text, "a.md")
    assert "Expected" in report
    assert "line 6" in report


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (faulty_quotes, "```python\nx = 1\n```\n"),
        (faulty_quotes, "```python\n# ops/state.py:map_state\nreturn 1\n```\n"),
        (faulty_quotes, "```python\n# ops/state.py:nothing\nreturn 1\n```\n"),
        (faulty_places, "see `ops/nothing.py`"),
        (faulty_places, "see `ops/state.py:nothing`"),
        (faulty_places, "see `layers/block.py:Block.nothing`"),
        (faulty_places, "see `subquad.ops.nothing`"),
        (faulty_links, "[here](nothing.md)"),
        (faulty_links, "[here](tour.md#no-such-heading)"),
        (faulty_links, "[here](../../outside.md)"),
        (placeholders, "The results:\n\n@NUMBERS@\n"),
    ],
)
def test_a_fault_is_caught(check, text):
    assert len(check(text, HERE)) == 1


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (faulty_quotes, "```\nanything\n```\n"),
        (faulty_quotes, "```python\n# tests/docs/test_documents.py:HERE\nDOCS / \n```\n"),
        (faulty_places, "`ops/state.py:map_state`, `config.json`, `layers/block.py:Block.step`"),
        (faulty_places, "`tests/docs/test_documents.py:ROOT`, `subquad.ops.state.map_state(f, s)`"),
        (placeholders, "mail someone@EXAMPLE.org"),
        (faulty_links, "[here](tour.md), [there](https://example.org/nothing.md)"),
    ],
)
def test_what_is_right_passes(check, text):
    assert check(text, HERE) == []
