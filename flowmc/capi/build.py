"""``flowmc-capi``: build the library for C and C++ programs, for the Python that runs this."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from flowmc.capi.glue import DECLARATIONS
from flowmc.messages import say
from flowmc.registry import ConfigError

__all__ = ["build", "main"]

_MODULE = "_flowmc_capi"
_START = """
import site, sys
for folder in {folders!r}:
    site.addsitedir(folder)
sys.executable = {python!r}  # not the host: flowmc starts processes with it
from {module} import ffi, lib
from flowmc.capi.glue import install
install(ffi, lib)
"""
_CMAKE = """\
# find_package(flowmc CONFIG) defines the target flowmc::flowmc.
if(NOT TARGET flowmc::flowmc)
  add_library(flowmc::flowmc SHARED IMPORTED)
  set_target_properties(flowmc::flowmc PROPERTIES
    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/{library}"
    IMPORTED_NO_SONAME TRUE
    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}")
endif()
"""


def build(folder: str | os.PathLike[str], *, compiler: Sequence[str] | None = None) -> Path:
    """Build the library, with its header and what CMake needs beside it; return its path.

    The library starts the Python that builds it, with the packages that this one has.

    Args:
        folder: where to put them; it is made.
        compiler: of C, with its options; by default ``CC``, else ``cc``.

    Raises:
        ConfigError: cffi, a compiler or Python's shared library is missing, or compiling fails.
        OSError: the folder cannot be written.
    """
    try:
        import cffi
    except ImportError:
        raise ConfigError(
            "cffi is missing, which the C interface is built with: "
            "pip install 'flowmc-lattice[capi]'"
        ) from None
    folder = Path(folder)
    python = _shared_python()
    here = files("flowmc.capi")
    header = here.joinpath("flowmc.h").read_text()
    maker = cffi.FFI()
    maker.embedding_api(DECLARATIONS)
    maker.cdef("void flowmc_set_message(const char *text);")
    maker.set_source(_MODULE, here.joinpath("flowmc.c").read_text())
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    maker.embedding_init_code(
        _START.format(
            folders=[one for one in folders if os.path.isdir(one)],
            python=sys.executable,
            module=_MODULE,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    is_mac = sys.platform == "darwin"
    library = folder / ("libflowmc.dylib" if is_mac else "libflowmc.so")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, f"{_MODULE}.c")
        with contextlib.redirect_stdout(None):  # it tells what it does
            maker.emit_c_code(os.fspath(source))
        Path(scratch, "flowmc.h").write_text(header)
        made = Path(scratch, library.name)
        command = [
            *(compiler or shlex.split(os.environ.get("CC", "cc"))),
            *("-O2", "-fPIC", "-dynamiclib" if is_mac else "-shared", "-I", scratch),
            *("-I", sysconfig.get_paths()["include"], f'-DFLOWMC_LIBPYTHON="{python.name}"'),
            *(os.fspath(source), "-o", os.fspath(made), os.fspath(python)),
            *(f"-Wl,-rpath,{python.parent}", "-lpthread", "-ldl"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise ConfigError(
                f"{command[0]} cannot be started ({error.strerror}): name a C compiler in CC"
            ) from error
        if done.returncode:
            raise ConfigError(
                f"{shlex.join(command)} failed: {done.stderr.strip()[-2000:]}: the headers of "
                "Python may be missing (python3-dev), or name another compiler in CC"
            )
        shutil.move(made, library)
    (folder / "flowmc.h").write_text(header)
    (folder / "flowmc-config.cmake").write_text(_CMAKE.format(library=library.name))
    return library


def _shared_python() -> Path:
    """Return Python's shared library."""
    names = [sysconfig.get_config_var(key) for key in ("INSTSONAME", "LDLIBRARY")]
    folders = [sysconfig.get_config_var(key) for key in ("LIBDIR", "LIBPL", "prefix")]
    for folder in filter(None, folders):
        for name in filter(None, names):
            found = Path(folder, name)
            if re.search(r"\.(so|dylib)", name) and found.exists():
                return found
    raise ConfigError(
        f"{sys.executable} has no shared library libpython, which a C program needs: use a Python "
        "that has one (conda's, a system's with its development package, or one that was built "
        "with --enable-shared)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``flowmc-capi``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="flowmc-capi",
        description="Build libflowmc.so, flowmc.h and flowmc-config.cmake for C and C++ programs.",
    )
    parser.add_argument("--output", default=".", metavar="DIR", help="where to put them")
    args = parser.parse_args(arguments)
    try:
        library = build(args.output)
    except (ConfigError, OSError) as error:
        say(str(error), prefix="flowmc-capi: ")
        return 2
    print(library)
    return 0
