"""The Python of README and documents runs as it stands, a document's blocks one after the other."""

import re
import shutil
from pathlib import Path

import pytest
from flowmc_adapters import registry

ROOT = Path(__file__).parents[2]
# Those that take ten seconds or more of a core.
SLOW = (
    "README.md",
    "docs/correlate.md",
    "docs/free_energies.md",
    "docs/start_student.md",
    "docs/training.md",
    "docs/validation.md",
)
DOCUMENTS = [
    path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
]


def test_every_page_is_in_the_site():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = {
        line
        for tree in re.findall(r"^```{toctree}\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
        for line in tree.splitlines()
    }
    pages = {path.stem for path in ROOT.glob("docs/*.md")} - {"index"}
    assert pages <= listed, f"docs/index.md lacks {', '.join(sorted(pages - listed))}"


def blocks(name):
    """Return line number and text of every Python block of a document."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start()) + 1, found[1]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in sorted(DOCUMENTS)
        if any(blocks(name))
    ],
)
def test_code_blocks_run(name, tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "examples/data/su3_4x4x4x8_b6.0.1000", tmp_path / "lat.1000")
    monkeypatch.chdir(tmp_path)
    if name == "docs/extending.md":
        pytest.importorskip("zuko")
        monkeypatch.syspath_prepend(str(ROOT / "examples/extending"))
    # A format that a document registers is not one that other tests know.
    monkeypatch.setattr(registry, "_formats", dict(registry._formats))
    names = {}
    for line, text in blocks(name):
        # The lines of a traceback are those of the document.
        exec(compile("\n" * line + text, name, "exec"), names)
