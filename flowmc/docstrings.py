"""What docstrings say of the parameters of a function or a class, for schemas and documents.

Read are the sections ``Args:`` and ``Attributes:`` of the docstrings of this package::

    Args:
        lam: quartic coupling, >= 0 (spelled ``lambda`` in configuration files).
        first, last: smallest and largest
            number.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

__all__ = ["descriptions", "summary"]

_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*): +(?P<text>.*)")


def descriptions(component: Callable[..., Any]) -> dict[str, str]:
    """Return what is said of parameters by name; of a class, what its bases say as well."""
    found: dict[str, str] = {}
    for one in reversed(component.__mro__) if inspect.isclass(component) else [component]:
        found |= _entries(one)
    return found


def summary(component: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring, without its full stop; empty without any."""
    text = inspect.getdoc(component) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return _plain(re.split(r"(?<=[^.]{3})\.(?= |$)", first, maxsplit=1)[0].rstrip("."))


def _entries(component: Callable[..., Any]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    names: list[str] = []
    inside, depth = False, 0
    for line in inspect.cleandoc(component.__doc__ or "").splitlines():
        indent = len(line) - len(line.lstrip())
        if line in ("Args:", "Attributes:"):
            inside, depth, names = True, 0, []
        elif line.strip() and not indent:
            inside = False
        elif inside and line.strip():
            depth = depth or indent
            entry = _ENTRY.fullmatch(line.strip()) if indent == depth else None
            if entry is not None:
                names = entry["names"].split(", ")
                found |= {name: [entry["text"]] for name in names}
            else:
                for name in names:
                    found[name].append(line.strip())
    return {name: _plain(" ".join(lines)) for name, lines in found.items()}


def _plain(text: str) -> str:
    """Return a text without the marks of reStructuredText."""
    text = re.sub(r":(?:class|func|meth|mod|attr):`~?([^`]+)`", r"``\1``", " ".join(text.split()))
    return re.sub(r":math:`([^`]+)`", r"$\1$", text).replace("``", "`")
