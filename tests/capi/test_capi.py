"""The C interface, through programs in C and C++ that were built against it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import iv

from flowmc.actions import Wilson
from flowmc.capi import build as building
from flowmc.capi.build import build
from flowmc.capi.glue import DECLARATIONS
from flowmc.chains import step
from flowmc.io import field_to_file_order, file_order_to_field
from flowmc.kernels import HMC
from flowmc.random import stream
from flowmc.registry import ConfigError
from tests.mpi import MPIRUN, launch, needs_mpi
from tests.processes import ROOT, environment
from tests.run.small_runs import write

EXAMPLES = ROOT / "examples" / "embedding"
HERE = Path(__file__).parent
if not (shutil.which("cc") and shutil.which("cmake")):
    pytest.skip("no compiler or no cmake here", allow_module_level=True)

TABLES = {
    "theory": {"action": "wilson", "group": "U(1)", "lattice": [4, 4], "beta": 2.0},
    "chains": {"count": 1, "seed": 5},
    "update": [{"kernel": "hmc", "steps": 4}],
    "measure": {"observables": ["plaquette"]},
}
ACTION = Wilson("U(1)", [4, 4], beta=2.0)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capi")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def probe(library):
    words = ["cc", "-g", "-Wall", "-Werror", HERE / "probe.c", "-I", library, "-L", library]
    words += ["-lflowmc", f"-Wl,-rpath,{library}", "-lm", "-o", library / "probe"]
    subprocess.run(words, check=True)
    return library / "probe"


def ran(*words, **more):
    done = subprocess.run(
        [str(word) for word in words],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_library_says_what_its_source_says():
    """The declarations for cffi are those of the C code."""
    source = (ROOT / "flowmc/capi/flowmc.c").read_text()
    for declaration in DECLARATIONS.strip().split(";\n"):
        assert " ".join(declaration.split()).rstrip(";") + ";" in " ".join(source.split())


def test_updates_and_errors(probe, tmp_path, capsys):
    """One program, as starting Python takes seconds; updates equal those of Python bit for bit."""
    config = write(tmp_path / "u1.toml", TABLES)
    field = ACTION.hot(1, stream(1, 0, "start"))
    host = field_to_file_order(field[0].numpy(), ACTION)
    kinds = {"double": "f8", "float": "f4", "sites": "f8"}
    words = []
    for kind, width in kinds.items():
        host.astype(width).tofile(tmp_path / kind)
        words += ["update", kind, tmp_path / kind, 3]
    ladder = TABLES | {
        "update": [*TABLES["update"], {"kernel": "exchange"}],
        "ladder": {"beta": [2.0, 1.5]},
    }
    broken = TABLES | {"update": [{"kernel": "nowhere:Kernel"}]}
    # A program that flowmc starts, in a host that is no Python.
    command = {"command": ["cp", "{input}", "{output}"], "format": "npy"}
    copied = TABLES | {"update": [{"kernel": "external", **command}]}
    host.tofile(tmp_path / "copied")
    words += ["of", write(tmp_path / "copied.toml", copied)]
    words += ["update", "double", tmp_path / "copied", 3]
    words += ["open", write(tmp_path / "ladder.toml", ladder)]
    words += ["open", write(tmp_path / "broken.toml", broken), "errors", "many", 1000]
    lines = iter(ran(probe, config, *words).splitlines())

    assert next(lines) == "open|0|"
    for kind, width in kinds.items():
        assert next(lines) == "update|0|"
        report = json.loads(next(lines))
        taken = torch.from_numpy(file_order_to_field(host.astype(width).astype("f8"), ACTION))[None]
        expected = step(taken, HMC(ACTION, steps=4), seed=5, number=3)
        wanted = field_to_file_order(expected.field[0].numpy(), ACTION).astype(width)
        assert np.fromfile(tmp_path / kind, width).tobytes() == wanted.tobytes(), kind
        assert report["number"] == 3 and report["acceptance"] == expected.acceptance
        assert report["action"] == pytest.approx(float(ACTION(expected.field)), rel=1e-12)

    assert next(lines) == "update|0|"
    assert json.loads(next(lines))["acceptance"] == {"external": 0.0}
    assert np.fromfile(tmp_path / "copied").tobytes() == host.tobytes()
    for what, status, quoted in (
        ("open", 2, "remove [ladder]"),
        ("open", 2, "nowhere"),
        ("no file", 2, "nowhere.toml"),
        ("two chains", 2, "set count = 1"),
        ("unknown key", 2, "count"),
        ("NULL", 2, "configuration is NULL"),
        ("too early", 2, "no update has been made"),
        ("no report", 1, "no update has been made"),
        ("good", 0, ""),
        ("repeated", 2, "number 5 is not above"),
        ("unknown value", 2, "hmc.acceptance"),
        ("NaN", 2, "not finite"),
        ("huge", 0, ""),  # an angle
    ):
        line = next(lines)
        found = line.split("|")
        assert found[:2] == [what, str(status)] and quoted in found[2], line

    grown, seconds = map(float, next(lines).split())
    with capsys.disabled():
        print(f"\n{1e6 * seconds:.0f} microseconds for a call of the C interface", end="")
    assert grown < 1000 * 512


def test_a_python_without_flowmc_is_a_status(probe, tmp_path, monkeypatch):
    """What cannot start returns an error, and not the zero that cffi returns then."""
    monkeypatch.setattr(building, "_START", "raise ImportError('planted')")
    build(tmp_path)
    config = write(tmp_path / "u1.toml", TABLES)
    said = ran(probe, config, LD_PRELOAD=str(tmp_path / "libflowmc.so"))
    assert said.startswith("open|2|Python, or flowmc in it, could not be started")


def test_without_a_compiler(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="CC"):
        build(tmp_path, compiler=["no-such-compiler"])
    with pytest.raises(ConfigError, match="failed"):
        build(tmp_path, compiler=["cc", "--no-such-option"])


@pytest.fixture(scope="module")
def examples(library, tmp_path_factory):
    """The examples, as their CMakeLists.txt builds them."""
    folder = tmp_path_factory.mktemp("build")
    options = [f"-Dflowmc_DIR={library}"]
    compiler = MPIRUN and Path(MPIRUN).with_name("mpicc")
    if compiler and compiler.exists():
        options += ["-DWITH_MPI=ON", f"-DMPI_C_COMPILER={compiler}"]
    ran("cmake", "-S", EXAMPLES, "-B", folder, *options)
    ran("cmake", "--build", folder)
    return folder


def plaquette_of(said):
    words = said.splitlines()[0].replace(",", "").split()
    return float(words[1]), float(words[-1])


@pytest.mark.parametrize(
    ("program", "exact"),
    [
        # Another test has it on two ranks.
        pytest.param("u1_hmc", iv(1, 7.0) / iv(0, 7.0), marks=pytest.mark.slow),
        ("su2_hmc", iv(2, 2.5) / iv(1, 2.5)),
    ],
)
def test_the_examples_give_the_exact_plaquette(examples, program, exact):
    """The host's updates mixed with ours; errors by a factor 2 for what is left of tau."""
    config = EXAMPLES / f"{program.partition('_')[0]}.toml"
    mean, error = plaquette_of(ran(examples / program, config, 300))
    assert abs(mean - exact) < 5 * 2 * error


def test_the_overhead_of_a_call(examples):
    """The command that prints it; seconds are those of one update, not of all until then."""
    words = ran(examples / "overhead", EXAMPLES / "su2.toml", 60).split()
    call, kernel, ratio = float(words[1]), float(words[4]), float(words[-1])
    assert words[0] == "call" and 0 < kernel < call
    assert ratio == pytest.approx(call / kernel, rel=0.05)


@needs_mpi
def test_the_example_on_two_ranks(examples):
    program = examples / "u1_hmc_mpi"
    if not program.exists():
        pytest.skip("no mpicc here")
    said = ran(MPIRUN, "-n", 2, program, EXAMPLES / "u1.toml", 150)
    mean, error = plaquette_of(said)
    assert abs(mean - iv(1, 7.0) / iv(0, 7.0)) < 5 * 2 * error


@needs_mpi
def test_parts_of_ranks_are_the_field_of_one(tmp_path):
    config = write(tmp_path / "u1.toml", TABLES)
    field = ACTION.hot(1, stream(1, 0, "start"))
    np.save(tmp_path / "in.npy", field_to_file_order(field[0].numpy(), ACTION))
    done = launch(2, HERE / "host_ranks.py", config, tmp_path / "in.npy", tmp_path / "out.npy")
    assert done.returncode == 0, done.stderr
    expected = step(field, HMC(ACTION, steps=4), seed=5, number=3).field
    out = np.load(tmp_path / "out.npy")
    assert out.tobytes() == field_to_file_order(expected[0].numpy(), ACTION).tobytes()


@pytest.mark.slow
def test_under_the_address_sanitizer(library, tmp_path):
    options = "detect_leaks=0"  # of Python, which is never ended
    for name, compiler, config in (
        ("u1_hmc.c", "cc", "u1.toml"),
        ("su2_hmc.cpp", "c++", "su2.toml"),
    ):
        program = tmp_path / Path(name).stem
        words = [compiler, "-g", "-fsanitize=address,undefined", EXAMPLES / name, "-I", library]
        words += ["-L", library, "-lflowmc", f"-Wl,-rpath,{library}", "-lm", "-o", program]
        subprocess.run(words, check=True)
        said = ran(program, EXAMPLES / config, 50, ASAN_OPTIONS=options)
        assert said.startswith("plaquette"), said
    words = ["cc", "-g", "-fsanitize=address,undefined", HERE / "probe.c", "-I", library]
    words += ["-L", library, "-lflowmc", f"-Wl,-rpath,{library}", "-lm", "-o", tmp_path / "probe"]
    subprocess.run(words, check=True)
    path = write(tmp_path / "u1.toml", TABLES)
    assert "repeated|2" in ran(tmp_path / "probe", path, "errors", ASAN_OPTIONS=options)
