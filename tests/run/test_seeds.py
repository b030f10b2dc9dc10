"""Ensembles without storage: ``[ensemble] format = "seeds"`` and ``flowmc regenerate``."""

import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from flowmc_adapters import FormatError, read_field
from flowmc_adapters.seeds import Seeds, configuration_checksum, read_seeds, write_seeds

from flowmc import registry
from flowmc.chains.regeneration import open_seeds
from flowmc.cli import main
from flowmc.correlate.store import SeriesStore
from flowmc.ensembles.stored import EnsembleTable, StoredEnsemble
from flowmc.free_energy.progress import Progress
from flowmc.free_energy.stored import StoredConfigurations
from tests.mpi import launch, needs_mpi
from tests.run.small_runs import config, digests, save_untrained_flow, write

FLOW = "flow.safetensors"
RUN = {"updates": 24, "save_every": 2, "checkpoint_every": 7}
HMC = {"kernel": "hmc", "steps": 3, "target_acceptance": 0.8}
DRAWN = {"kernel": "independence", "flow": FLOW, "proposals": 2, "repeat": 2}
EXTERNAL = {"kernel": "external", "command": ["move", "{input}", "{output}"], "format": "npy"}
LADDER = {"m2": [-1.0, -0.6, 0.0], "tune": True}
# Theory, updates, further tables: of every kind of field, of chains, ladders and draws.
CASES = {
    "scalar": (None, [HMC], {}),
    "with a flow": (None, [HMC, DRAWN], {"chains": {"start": "flow"}}),
    "drawn": (None, [{**DRAWN, "batch_size": 3}, DRAWN], {"chains": {"start": "flow"}}),
    "ladder": (None, [HMC, {"kernel": "exchange"}], {"ladder": LADDER}),
    "u1": ({"action": "wilson", "group": "U(1)", "lattice": [4, 4], "beta": 2.0}, [HMC], {}),
    "su3": (
        {"action": "wilson", "group": "SU(3)", "lattice": [2, 2, 2, 2], "beta": 5.0},
        [HMC],
        {"chains": {"precision": 32}},
    ),
}

OWN_FORMAT = """
from flowmc_adapters import Format

class Own(Format):
    name = "own"
    description = "the numbers alone"

    def detect(self, head, path):
        return False

    read_header = read = None

    def write(self, path, configuration, *, precision=None, **options):
        configuration.links.tofile(path)
        return []
"""


def started(folder, case, name="a", ensemble=None, command=main, **changes):
    """Run a case in a folder; return the run directory."""
    ensemble = ensemble or {"format": "seeds"}
    if case != "drawn" and ensemble["format"] == "seeds":
        ensemble = {"keep_every": 4, **ensemble}
    theory, updates, more = CASES[case]
    run = {**RUN, **({"thermalization": 16} if case == "ladder" else {})}
    made = config(update=updates, run=run, ensemble=ensemble, **more)
    made["theory"] = theory or made["theory"]
    for table, change in changes.items():
        made[table] = {**made.get(table, {}), **change}
    if not (folder / FLOW).exists():
        save_untrained_flow(folder / FLOW)
    path = write(folder / f"{name}.toml", made)
    assert command(["run", path, "--output", str(folder / name)]) == 0
    return folder / name


@pytest.fixture(scope="module")
def scalar(tmp_path_factory):
    """Return the directory of a run of three chains in two blocks, of the numbers 2, 4, ... 24."""
    return started(tmp_path_factory.mktemp("scalar"), "scalar")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return the same of draws of two flows."""
    return started(tmp_path_factory.mktemp("drawn"), "drawn")


def copy_of(run, folder):
    """Return a copy of a run directory, with the flow beside it, and its file of seeds."""
    shutil.copy(run.parent / FLOW, folder)
    shutil.copytree(run, folder / "a")
    return folder / "a", folder / "a/ensemble/conf.seeds"


def contents(folder: Path):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".seeds", ".h5")
    }


def refused(capsys, *words, status=2):
    """Run a command that is refused; return its one sentence."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case == "scalar" else case for case in CASES],
)
def test_the_files_are_those_that_the_run_would_have_saved(case, tmp_path):
    run = started(tmp_path, case)
    saved = started(tmp_path, case, "b", {"format": "hdf5"})
    assert not contents(run / "ensemble")
    assert (run / "ensemble/checkpoints").exists() == (case != "drawn")
    assert main(["regenerate", str(run), "--output", str(tmp_path / "all")]) == 0
    assert contents(tmp_path / "all") == contents(saved / "ensemble") != {}
    # A few of them, from checkpoints within, or right after a configuration.
    some = ["16", "4", "20-24", "--chain", "2", "--output", str(tmp_path / "some")]
    assert main(["regenerate", str(run / "ensemble/conf.seeds"), *some]) == 0
    found = contents(tmp_path / "some")
    assert sorted(found) == [f"chain0002/conf.{n}" for n in (16, 20, 22, 24, 4)]
    assert found.items() <= contents(saved / "ensemble").items()


def test_the_chain_is_the_same_whatever_is_kept(scalar, tmp_path):
    other = started(tmp_path, "scalar", "b", {"format": "npy"})
    for name in ("measurements.h5",):
        assert (scalar / name).read_bytes() == (other / name).read_bytes()


def test_numbers_continue_those_of_a_start_file(tmp_path):
    before = started(tmp_path, "scalar", "b", {"format": "hdf5"})
    files = [str(before / f"ensemble/chain{chain:04d}/conf.24") for chain in range(3)]
    chains = {"start": "file", "file": files, "seed": 8}
    table = {"format": "seeds", "name": "lat"}
    run = started(tmp_path, "scalar", "a", table, chains=chains)
    saved = started(tmp_path, "scalar", "c", {"format": "ildg", "name": "lat"}, chains=chains)
    shutil.rmtree(before)  # no start file is needed again
    words = ["regenerate", str(run), "26-40:4", "--format", "ildg", "--output", str(tmp_path / "d")]
    assert main(words) == 0
    found = contents(tmp_path / "d")
    assert sorted(found) == [f"chain000{c}/lat.{n}" for c in range(3) for n in (26, 30, 34, 38)]
    assert found.items() <= contents(saved / "ensemble").items()


@needs_mpi
@pytest.mark.parametrize("case", ["scalar", pytest.param("drawn", marks=pytest.mark.slow)])
def test_no_number_of_ranks_changes_a_byte(case, scalar, drawn, tmp_path):
    alone = {"scalar": scalar, "drawn": drawn}[case]

    def ranks(words):
        done = launch(2, "-m", "flowmc.cli", *words)
        assert done.returncode == 0, done.stderr
        return 0

    run = started(tmp_path, case, command=ranks)
    names = [*digests(run / "ensemble")]
    assert names == [*digests(alone / "ensemble")] and len(names) > (case == "scalar")
    # The file says where its configuration is, and both are one directory above.
    assert digests(run / "ensemble") == digests(alone / "ensemble")
    assert ranks(["regenerate", str(run), "--output", str(tmp_path / "two")]) == 0
    assert main(["regenerate", str(run), "--output", str(tmp_path / "one")]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != {}


def test_a_run_that_is_extended_is_one_that_was_long(scalar, tmp_path):
    run = started(tmp_path, "scalar", run={"updates": 14})
    assert [*read_seeds(run / "ensemble/conf.seeds").numbers()] == [*range(2, 15, 2)]
    path = tmp_path / "a.toml"
    words = ["run", str(path), "--output", str(run), "--resume", "--set", "run.updates=24"]
    assert main(words) == 0
    assert digests(run / "ensemble") == digests(scalar / "ensemble")


def test_a_resume_needs_the_checksums_so_far(scalar, tmp_path, capsys):
    run, seeds = copy_of(scalar, tmp_path)
    shutil.copy(scalar.parent / "a.toml", tmp_path)
    words = ["run", tmp_path / "a.toml", "--output", run, "--resume"]
    whole, sound = seeds.read_bytes(), read_seeds(seeds)
    seeds.unlink()
    assert "cannot be read" in refused(capsys, *words)
    seeds.write_bytes(whole[:-9])
    assert "damaged or truncated" in refused(capsys, *words)
    write_seeds(seeds, replace(sound, checksums=sound.checksums[:-1]))
    assert "does not hold the 12 configurations" in refused(capsys, *words)
    seeds.write_bytes(whole)
    assert main([str(word) for word in words]) == 0
    assert seeds.read_bytes() == whole


@pytest.mark.parametrize("fixture", ["scalar", "drawn"])
def test_another_checksum_is_refused(fixture, request, tmp_path, capsys):
    run, seeds = copy_of(request.getfixturevalue(fixture), tmp_path)
    sound = read_seeds(seeds)
    flipped = sound.checksums.copy()
    flipped[7, 1] ^= 1 << 20
    write_seeds(seeds, replace(sound, checksums=flipped))
    text = refused(capsys, "regenerate", run, "--output", tmp_path / "out")
    assert "configuration 16 of chain 1 has another checksum" in text
    assert "the file is damaged, or this machine" in text
    assert main(["regenerate", str(run), "2-14", "--check"]) == 0


def planted(seeds: Path, change):
    """Change what a file of seeds says."""
    sound = read_seeds(seeds)
    content = json.loads(json.dumps(sound.content))
    change(content)
    write_seeds(seeds, Seeds(content, sound.checksums))


@pytest.mark.parametrize("fixture", ["scalar", "drawn"])
def test_other_seeds_and_surroundings_are_named(fixture, request, tmp_path, capsys):
    run, seeds = copy_of(request.getfixturevalue(fixture), tmp_path)

    def change(content):
        content["configuration"]["chains"]["seed"] = 8
        content["made_with"]["cpu"] = "another one"

    planted(seeds, change)
    text = refused(capsys, "regenerate", run, "2-8", "--check")
    if fixture == "drawn":
        assert "configuration 2 of chain 0 has another checksum" in text
        assert "made with cpu another one" in text
    else:
        # Its random streams are in the checkpoint, which says whose it is.
        assert "00000000.h5 is of another run" in text


def test_another_coupling_is_refused(scalar, tmp_path, capsys):
    run, seeds = copy_of(scalar, tmp_path)
    planted(seeds, lambda content: content["configuration"]["theory"].update(m2=-1.01))
    text = refused(capsys, "regenerate", run, "10", "--check")
    assert "configuration 10 of chain 0 has another checksum" in text


def test_other_weights_are_refused(drawn, tmp_path, capsys):
    run, _ = copy_of(drawn, tmp_path)
    save_untrained_flow(tmp_path / FLOW, seed=2)
    text = refused(capsys, "regenerate", run, "--check")
    assert f"the flow '{FLOW}' is not the one" in text and "digest" in text
    (tmp_path / FLOW).unlink()
    assert FLOW in refused(capsys, "regenerate", run, "--check")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_untrained_flow(elsewhere / FLOW)
    assert main(["regenerate", str(run), "2-6", "--check", "--base", str(elsewhere)]) == 0


def test_missing_and_damaged_checkpoints_are_named(scalar, tmp_path, capsys):
    run, _ = copy_of(scalar, tmp_path)
    kept = run / "ensemble/checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == [
        f"{count:08d}.h5" for count in (0, 8, 16, 24)
    ]
    with h5py.File(kept / "00000008.h5", "r+") as file:
        file["blocks/0001/replicas/0/field"][0, 0, 0] += 1e-9
    (kept / "00000016.h5").unlink()
    assert "00000016.h5 is missing" in refused(capsys, "regenerate", run, "18", "--check")
    assert "00000008.h5 is not a sound checkpoint" in refused(
        capsys, "regenerate", run, "10", "--check"
    )
    shutil.copy(kept / "00000024.h5", kept / "00000016.h5")
    assert "is of another run" in refused(capsys, "regenerate", run, "18", "--check")
    assert main(["regenerate", str(run), "2-6", "24", "--check"]) == 0
    (kept / "00000016.h5").unlink()
    capsys.readouterr()
    assert main(["inspect", "--json", str(run / "ensemble/conf.seeds")]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert "1 of 4 checkpoints are missing" in report["warnings"][0]


def test_damaged_files_are_one_sentence(scalar, tmp_path, capsys):
    whole = (scalar / "ensemble/conf.seeds").read_bytes()
    path = tmp_path / "conf.seeds"
    rng = np.random.default_rng(1)
    for size in [0, 10, *rng.integers(40, len(whole), 12)]:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            read_seeds(path)
    for place in rng.integers(40, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        path.write_bytes(damaged)
        try:
            found = read_seeds(path)
        except FormatError:
            continue
        # Bytes of the archive that nothing depends on.
        assert np.array_equal(found.checksums, read_seeds(scalar / "ensemble/conf.seeds").checksums)
    path.write_bytes(whole[:-30])
    assert "damaged or truncated file of seeds" in refused(capsys, "regenerate", path)
    assert main(["inspect", str(path)]) == 2
    planted(scalar / "ensemble/conf.seeds", lambda content: None)
    shutil.copy(scalar / "ensemble/conf.seeds", path)
    planted(path, lambda content: content.update(layout=99))
    assert "layout 99" in refused(capsys, "regenerate", path)
    planted_configuration = lambda content: content.update(configuration={})  # noqa: E731
    shutil.copy(scalar / "ensemble/conf.seeds", path)
    planted(path, planted_configuration)
    assert "missing table" in refused(capsys, "regenerate", path)


def test_what_is_asked_for_is_checked(scalar, tmp_path, capsys):
    out = ["--output", tmp_path]
    for words, text in [
        (["3"], "has no configuration 3: it holds 2 to 24 in steps of 2"),
        (["4", "30-40"], "has no configuration 30 to 40"),
        (["4-2"], "'4-2' is no configuration number"),
        (["x"], "'x' is no configuration number"),
        (["4", "--chain", "3"], "--chain 3"),
        (["4", "--format", "nersc"], "nersc files hold SU(N) links"),
    ]:
        assert text in refused(capsys, "regenerate", scalar, *words, *out), words
    assert "no file of seeds" in refused(capsys, "regenerate", tmp_path)
    assert "is no file of seeds" in refused(capsys, "regenerate", scalar / "config.toml")
    assert main(["regenerate", str(scalar), "4", "--output", str(tmp_path)]) == 0
    assert "is there already" in refused(capsys, "regenerate", scalar, "4", *out)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ensemble": {"precision": 32}}, "the seeds of configurations have none"),
        ({"ensemble": {"format": "npy", "keep_every": 4}}, "keep_every = 4 is about checkpoints"),
        ({"ensemble": {"keep_every": 0}}, "keep_every = 0: should be at least 1"),
        ({"update": [DRAWN]}, "keep_every = 4: no checkpoint is needed"),
        (
            {
                "update": [
                    {"kernel": "external", "command": ["{input}", "{output}"], "format": "npy"}
                ]
            },
            "is done by a command",
        ),
    ],
)
def test_configurations_that_cannot_be_made_again_are_refused(changes, text, tmp_path, capsys):
    save_untrained_flow(tmp_path / FLOW)
    tables = config(run=RUN, ensemble={"format": "seeds", "keep_every": 4})
    for name, change in changes.items():
        tables[name] = change if isinstance(change, list) else {**tables[name], **change}
    path = write(tmp_path / "a.toml", tables)
    assert text in refused(capsys, "run", path, "--output", tmp_path / "a")


def test_a_file_takes_less_than_a_kilobyte_beside_the_checksums(scalar, drawn, tmp_path):
    for run in (scalar, drawn):
        seeds = read_seeds(run / "ensemble/conf.seeds")
        many = np.random.default_rng(1).integers(0, 2**63, (10_000, 1)).astype(np.uint64)
        write_seeds(tmp_path / "many.seeds", replace(seeds, checksums=many))
        assert (tmp_path / "many.seeds").stat().st_size - many.nbytes <= 1000, run


def test_inspect_says_what_is_there(scalar, capsys):
    path = str(scalar / "ensemble/conf.seeds")
    assert main(["inspect", "--json", path]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["format"] == "seeds" and report["kind"] == "scalar"
    assert report["dims"] == [4, 4] and report["configurations"] == 36
    assert report["checksum"]["ok"] and not report["warnings"]
    assert main(["inspect", path]) == 0
    text = capsys.readouterr().out
    assert "2 to 24 in steps of 2" in text and "checkpoints every 8 updates" in text
    assert main(["inspect", str(scalar / "ensemble")]) == 0
    assert "36 configurations" in capsys.readouterr().out


def test_convert_makes_configurations_one_at_a_time(scalar, tmp_path, capsys):
    path = str(scalar / "ensemble/conf.seeds")
    words = ["convert", f"{path}#6", str(tmp_path / "six"), "--format", "npy"]
    assert main(words) == 0
    assert main(["regenerate", str(scalar), "6", "--output", str(tmp_path / "made")]) == 0
    for chain in range(3):
        name = f"chain{chain:04d}/conf.6"
        made = read_field(tmp_path / "made" / name).values
        assert np.array_equal(np.load(tmp_path / f"six/{name}.npy"), made)
    capsys.readouterr()
    assert main([*words, "--existing", "skip"]) == 0
    assert main(words) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["convert", f"{path}#7", str(tmp_path), "--format", "npy"]) == 2
    assert "has no configuration 7" in capsys.readouterr().err
    # Whoever needs one configuration says how to have it.
    tables = config(chains={"start": "file", "file": path})
    run = write(tmp_path / "a.toml", tables)
    assert "flowmc regenerate FILE" in refused(capsys, "run", run, "--output", tmp_path / "a")


def test_correlate_reads_them_as_an_ensemble(scalar, tmp_path):
    assert main(["regenerate", str(scalar), "--output", str(tmp_path / "made")]) == 0
    columns = {}
    for name, source in [
        ("files", {"files": str(tmp_path / "made/*")}),
        ("seeds", {"files": str(scalar / "ensemble/conf.seeds"), "batch": 7}),
        ("run", {"run": str(scalar), "first": 6, "every": 3}),
    ]:
        tables = {"ensemble": source, "target": [{"m2": -0.9}]}
        if name != "run":
            tables["theory"] = config()["theory"]
        path = write(tmp_path / f"{name}.toml", tables)
        assert main(["correlate", path, "--output", str(tmp_path / name)]) == 0
        store = SeriesStore(tmp_path / name / "series.h5")
        columns[name] = store.columns(), store.keys
        store.close()
    assert columns["seeds"][1] == columns["files"][1]
    for key, values in columns["files"][0].items():
        np.testing.assert_allclose(columns["seeds"][0][key], values, rtol=1e-12, atol=1e-12)
    chosen = [number for _, number in columns["run"][1]]
    assert chosen == 3 * [6, 12, 18, 24]


@pytest.mark.parametrize("fixture", ["scalar", "drawn"])
def test_from_python(fixture, request, tmp_path):
    run = request.getfixturevalue(fixture)
    made = open_seeds(run)
    assert made.rows == 12 and made.seeds.chains == 3
    fields = {(one.chain, one.number): one.field for one in made.make(made.rows_of(None))}
    assert len(fields) == 36
    ensemble = StoredEnsemble.of_run(run, seeds=open_seeds)
    assert ensemble.seed == 7
    action = made.config.action
    (batch,) = ensemble.batches(action, 100)
    for place, one in enumerate(ensemble.members):
        field = fields[int(one.replica.removeprefix("chain")), one.number]
        assert torch.equal(batch.field[place], field)
    backwards = ensemble.take([30, 2, 17], action)
    assert torch.equal(backwards, batch.field[[30, 2, 17]])
    with pytest.raises(FormatError, match="regenerate"):
        StoredEnsemble.of_run(run)
    with pytest.raises(FormatError, match="4x4 lattice"):
        other = type(action)(lattice=(4, 6), m2=-1.0, lam=0.5)
        list(ensemble.batches(other, 1))


def test_a_chain_that_has_not_moved_is_at_its_start(tmp_path):
    run = started(tmp_path, "drawn", chains={"start": "cold"})
    seeds = read_seeds(run / "ensemble/conf.seeds")
    cold = configuration_checksum(np.zeros((4, 4)))
    seeds.checksums[:3, 2] = cold
    write_seeds(run / "ensemble/conf.seeds", seeds)
    made = open_seeds(run)
    for row in range(3):
        (one,) = made.make({row: [2]})
        assert one.chain == 2 and not one.field.any()
    # The next one is a draw of the update behind it.
    (one,) = made.make({3: [2]})
    assert one.field.all()


def test_ln_z_of_an_ensemble_without_storage(scalar, tmp_path):
    """The same rows as of files, and in the same order of replicas."""
    assert main(["regenerate", str(scalar), "--output", str(tmp_path / "made")]) == 0
    action = open_seeds(scalar).config.action
    found = []
    for files, name in [("made/*", "a"), (str(scalar / "ensemble/conf.seeds"), "b")]:
        progress = Progress(tmp_path / name)
        stored = StoredConfigurations(
            EnsembleTable(files=files, first=4), tmp_path, action, lambda text: None, progress
        )
        found.append(torch.stack(list(stored.after(2))))
    assert found[0].shape == (9, 3, 4, 4) and torch.equal(*found)


def test_a_live_chain_of_an_analysis_may_keep_seeds(tmp_path):
    tables = config(run={"updates": 12, "measure_every": 2}, target=[{"m2": -0.9}])
    del tables["run"]["checkpoint_every"]
    for form in ("seeds", "hdf5"):
        tables["ensemble"] = {"format": form}
        path = write(tmp_path / f"{form}.toml", tables)
        assert main(["correlate", path, "--output", str(tmp_path / form)]) == 0
    assert (tmp_path / "seeds/chain/ensemble/conf.seeds").exists()
    stores = [SeriesStore(tmp_path / form / "series.h5") for form in ("seeds", "hdf5")]
    for key, values in stores[1].columns().items():
        np.testing.assert_allclose(stores[0].columns()[key], values, rtol=1e-12, atol=1e-12)


def test_a_format_of_ones_own(tmp_path):
    (tmp_path / "own_format.py").write_text(OWN_FORMAT)
    run = started(tmp_path, "su3")
    words = ["24", "--format", "own_format:Own", "--output", str(tmp_path / "own")]
    assert main(["regenerate", str(run), *words]) == 0
    values = np.fromfile(tmp_path / "own/chain0001/conf.24", "<c8").reshape(2, 2, 2, 2, 4, 3, 3)
    seeds = read_seeds(run / "ensemble/conf.seeds")
    assert configuration_checksum(values) == int(seeds.checksums[-1, 1])


def test_the_checksum_is_of_the_numbers_alone():
    values = np.arange(12.0).reshape(3, 4)
    assert configuration_checksum(values) == configuration_checksum(values.astype(">f8"))
    assert configuration_checksum(values) == configuration_checksum(np.asfortranarray(values))
    assert configuration_checksum(values) != configuration_checksum(values + 1)


def test_a_theory_of_ones_own_is_imported_where_it_is_trusted(tmp_path, capsys, monkeypatch):
    (tmp_path / "own_theory.py").write_text(
        "from flowmc.actions.scalar import Phi4\nclass Own(Phi4):\n    name = 'own'\n"
    )
    theory = {**config()["theory"], "action": "own_theory:Own"}
    run = started(tmp_path, "scalar", theory=theory)
    monkeypatch.delitem(sys.modules, "own_theory")
    monkeypatch.setattr(registry, "_TRUSTED", set())
    words = ["regenerate", run, "24", "--check"]
    assert "own_theory" in refused(capsys, *words)
    assert main([*map(str, words), "--trust", "own_theory"]) == 0


def test_the_archive_is_readable_without_flowmc(scalar):
    with zipfile.ZipFile(scalar / "ensemble/conf.seeds") as archive:
        assert archive.namelist() == ["seeds.json", "checksums.npy"]
        assert json.loads(archive.read("seeds.json"))["configuration"]["chains"]["seed"] == 7
