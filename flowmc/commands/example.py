"""``flowmc example``: the examples that come with the package, copied to where they can be run."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from pathlib import Path

import flowmc
from flowmc.messages import say
from flowmc.registry import ConfigError, nearest

__all__ = ["copy_example", "examples", "run"]


def run(args: argparse.Namespace) -> int:
    """List the examples, or copy one; return the exit status.

    Raises:
        ConfigError: there is no such example, or a file of another content is in its place.
        OSError: it cannot be written.
    """
    if args.name is None:
        found = examples()
        width = max(map(len, found))
        print("\n".join(f"{name.ljust(width)}  {text}" for name, text in found.items()))
        return 0
    written = copy_example(args.name, Path(args.directory))
    print("\n".join(map(str, written)))
    command = _command(written[0])
    if command:
        say(f"as it is meant to be run:  {command}")
    return 0


def examples() -> dict[str, str]:
    """Return name and first sentence of every example."""
    root = _root()
    paths = sorted(path for kind in ("*.toml", "*.py", "*.sh") for path in root.rglob(kind))
    return {path.relative_to(root).as_posix(): _title(path) for path in paths}


def copy_example(name: str, directory: Path) -> list[Path]:
    """Copy an example with the files that it needs; return the new paths, its own first.

    Args:
        name: as :func:`examples` has it; the ending may be missing.
        directory: where ``examples/`` is made, so that the commands in its comments work there.

    Raises:
        ConfigError: there is no such example, or a file of another content is in its place.
        OSError: it cannot be written.
    """
    root, known = _root(), examples()
    fitting = [path for path in known if name in (path, os.path.splitext(path)[0])]
    if not fitting:
        raise ConfigError(f"no example {name!r}{nearest(name, known)}; `flowmc example` lists all")
    sources = [root / fitting[0], *_needed(root, root / fitting[0])]
    targets = [directory / "examples" / source.relative_to(root) for source in sources]
    for source, target in zip(sources, targets, strict=True):
        if target.exists() and target.read_bytes() != source.read_bytes():
            raise ConfigError(f"{target} is there with another content: move it away first")
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return targets


def _root() -> Path:
    """Return the folder of the examples: within an installed package, or beside it in a clone."""
    package = Path(flowmc.__file__).parent
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / "su3_hybrid.toml").exists():
            return folder
    raise ConfigError(f"the examples of this installation are missing; they belong into {package}")


def _needed(root: Path, path: Path) -> list[Path]:
    """Return the other files of an example: those it names, and for a script its whole folder."""
    found, new = {path}, {path}
    if path.suffix == ".py" and path.parent != root:
        # Scripts of a folder share modules.
        new |= {other for other in path.parent.iterdir() if other.is_file()}
    while new:
        found |= new
        new = {other for one in new for other in _named(root, one)} - found
    return sorted(found - {path})


def _named(root: Path, path: Path) -> set[Path]:
    """Return the files that a text names: in quotes, as modules, and in its commands."""
    if path.suffix not in (".toml", ".py", ".sh"):
        return set()
    text = path.read_text(encoding="utf-8")
    words = [path.parent / word for word in re.findall(r'"([^"\n]+)"', text)]
    words += [path.parent / f"{name}.py" for name in re.findall(r'"(\w+):\w+"', text)]
    commands = re.findall(r"^[#\s]*flowmc .*$", text, re.M) if path.suffix == ".toml" else []
    for command in commands:
        words += [root / word for word in re.findall(r"examples/(\S+\.toml)", command)]
    if path.suffix == ".py" and path.parent != root and '"zoo"' in text:
        words += (root / "zoo").glob("*.toml")
    top = root.resolve()
    files = {word.resolve() for word in words if word.is_file()}
    return {root / file.relative_to(top) for file in files if file.is_relative_to(top)}


def _title(path: Path) -> str:
    """Return the first sentence of a file's opening remark."""
    text = path.read_text(encoding="utf-8")
    remark = re.match(r'(?:#![^\n]*\n)?(?:r?"""(.*?)"""|((?:#[^\n]*\n)+))', text, re.DOTALL)
    if remark is None:
        return ""
    words = " ".join((remark[1] or remark[2].replace("#", " ")).split())
    sentence = re.split(r"[.:;](?: |$)", words, maxsplit=1)[0]
    return textwrap.shorten(sentence, 100, placeholder=" ...")


def _command(path: Path) -> str | None:
    found = re.search(
        r"^[#\s]*((?:flowmc|python|mpirun|sbatch) .*)$", path.read_text("utf-8"), re.M
    )
    return found[1] if found else None
