"""Files written by other codes, with the numbers that those codes printed.

Plaquettes and link traces come from headers and reference logs of the codes in question; checksums
are in the files. Skipped where the files are not beside the project.
"""

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    Configuration,
    FormatError,
    detect,
    inspect,
    plaquettes,
    read,
    read_array,
    read_header,
    write,
)

# name, format, dims, nc, precision, plaquette, its accuracy, link trace, checksum
FILES = [
    ("nersc/qdpxx-t_nersc.cfg", "nersc", (4, 4, 4, 4), 3, 32, 0.0382422893, 1e-8, 0.4630322094,
     "717938df"),
    ("nersc/qlua-random-gauge.nersc", "nersc", (4, 4, 4, 8), 3, 32, 0.994765, 5e-7, 0.379318,
     "337cf07b"),
    ("nersc/glu-lat..400", "nersc", (4, 4, 4, 8), 3, 64, 0.5985455591, 5e-11, -0.0007741846376,
     "f2ee7c36"),
    ("nersc/nersc.l8t4b3360", "nersc", (8, 8, 8, 4), 3, 64, 0.5038664469, 1e-10, 0.005406083858,
     "b379560a"),
    ("scidac/weak_field.lime", "ildg", (4, 4, 4, 8), 3, 64, 0.994804132267, 1e-12, 0.379449348702,
     "a2c41090 11193c39"),
    ("scidac/unity.lime", "ildg", (4, 4, 4, 4), 3, 64, 1.0, 0, 1.0, "35b49a1b b49a1b35"),
    ("ildg/ildg.l8t4b3360", "ildg", (8, 8, 8, 4), 3, 64, 0.5038664469, 1e-10, 0.005406083858,
     "10d0ea1a a6a1b3b8"),
    ("ildg/nissa-L4T8conf", "ildg", (4, 4, 4, 8), 3, 64, 0.6350056, 5e-8, None,
     "1c231a18 3c553b"),
    ("ildg/cl2qcd-conf.00200", "ildg", (4, 4, 4, 4), 3, 64, 0.571077, 5e-7, None,
     "a3b09c8 d7a6d9a1"),
    ("ildg/latticeqcd-rs-task_a-gauge.ildg", "ildg", (2, 2, 2, 2), 3, 64, -0.009508755537, 1e-12,
     None, None),
    ("milc/lat.sample.l4444.ildg", "ildg", (4, 4, 4, 4), 3, 32, (1.794675156 + 1.774425798) / 6,
     1e-8, 0.64675874, "37affb9c 2fc07bbf"),
]  # fmt: skip
# No extents in the file: name, nc, plaquette
BARE_FILES = [
    ("ildg/gaugefields-conf_00000100_4444nc2.ildg", 2, 0.668474886836),
    ("ildg/latticeqcdjl-Heatbath_L04040404_beta5.7_quenched_su4.ildg", 4, 0.344072574856),
]


@pytest.mark.parametrize(
    ("name", "format", "dims", "nc", "precision", "plaquette", "accuracy", "trace", "checksum"),
    FILES,
)
def test_known_values(
    real_file, name, format, dims, nc, precision, plaquette, accuracy, trace, checksum
):
    report = inspect(real_file(name))
    assert report["error"] is None
    assert (report["format"], report["dims"]) == (format, list(dims))
    assert (report["nc"], report["precision"]) == (nc, precision)
    assert report["plaquette"] == pytest.approx(plaquette, abs=accuracy, rel=0)
    if trace is not None:
        tolerance = 5e-7 if precision == 32 else 1e-10
        assert report["link_trace"] == pytest.approx(trace, abs=tolerance)
    if checksum is None:
        assert report["checksum"] is None
    else:
        assert report["checksum"]["stored"] == checksum
        assert report["checksum"]["ok"] is True
    assert report["unitarity_error"] < (1e-6 if precision == 32 else 1e-13)
    header = read_header(real_file(name))
    assert (header.dims, header.nc, header.precision) == (dims, nc, precision)


@pytest.mark.parametrize(("name", "nc", "plaquette"), BARE_FILES)
def test_files_without_extents_need_them(real_file, name, nc, plaquette):
    path = real_file(name)
    with pytest.raises(FormatError, match="give them as dims"):
        read(path)
    configuration = read(path, dims=(4, 4, 4, 4))
    assert configuration.nc == nc
    assert plaquettes(configuration.links).mean == pytest.approx(plaquette, abs=1e-12)
    assert any("no checksum" in warning for warning in configuration.warnings)


def test_stale_checksum_is_an_error_unless_waived(real_file):
    path = real_file("ildg/cl2qcd-conf.00200-b")
    with pytest.raises(CheckError, match="46b62a47 1a24b4ac"):
        read(path)
    configuration = read(path, check_checksum=False)
    assert list(configuration.failed_checks) == ["checksum"]
    assert any("46b62a47" in warning for warning in configuration.warnings)
    sound = read(real_file("ildg/cl2qcd-conf.00200"))
    assert np.array_equal(configuration.links, sound.links)


def test_one_of_several_records_is_the_gauge_field(real_file):
    configuration = read(real_file("scidac/qdpxx-t_qio.intel-scalar.lime"))
    assert configuration.format == "scidac"
    assert configuration.checksum.computed == "d716ee56 7d701386"
    assert any("3 binary records" in warning for warning in configuration.warnings)
    assert any("not in SU(3)" in warning for warning in configuration.warnings)


def test_the_same_field_from_nersc_and_ildg(real_file):
    nersc = read(real_file("nersc/nersc.l8t4b3360")).links
    ildg = read(real_file("ildg/ildg.l8t4b3360")).links
    assert np.abs(nersc - ildg).max() < 1e-15


def test_numpy_files_of_another_code(real_file):
    # One file per direction, (3, 3, Lx, Ly, Lz, Lt) in Fortran order, row first.
    parts = [read_array(real_file(f"numpy/latticeqcd-rs-random4444-u{mu}.npy")) for mu in range(4)]
    links = np.stack(parts).transpose(6, 5, 4, 3, 0, 1, 2)
    configuration = Configuration(np.ascontiguousarray(links))
    assert plaquettes(configuration.links).mean == pytest.approx(-0.004338191299781562, abs=1e-15)


def test_metadata_of_the_sources(real_file):
    milc = read(real_file("milc/lat.sample.l4444.ildg")).metadata
    assert milc["ildg-data-lfn"] == "lfn://USQCD/MILC/test/lat.sample.l4444"
    assert "gauge.tadpole.u0 = 0.844100" in milc["scidac-record-xml"]
    nissa = read(real_file("ildg/nissa-L4T8conf"))
    assert nissa.number == 2000
    assert nissa.metadata["xlf-info"].startswith("\n plaquette = 6.350056e-01")
    cps = read(real_file("nersc/glu-lat..400"))
    assert cps.number == 400
    assert cps.metadata["ENSEMBLE_LABEL"] == "4x4x4x8x4 rjt 2.13 m0.04"


@pytest.mark.parametrize("format", ["nersc", "ildg", "scidac", "npy"])
@pytest.mark.parametrize("name", [entry[0] for entry in FILES])
def test_rewriting_keeps_every_bit_of_the_links(real_file, tmp_path, name, format):
    configuration = read(real_file(name))
    write(tmp_path / "copy", configuration, format)
    again = read(tmp_path / "copy")
    assert again.links.tobytes() == configuration.links.tobytes()
    assert again.links.dtype == configuration.links.dtype
    if format != "npy":
        assert again.number == (0 if configuration.number is None and format == "nersc"
                                else configuration.number)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("milc/lat.sample.l4444", "milc"),
        ("milc/lat.sample.l4448", "milc"),
        ("milc/lat.sample.inst", "milc"),
        ("openqcd/openQCD_qcd1_pb_L8T8_b6.0_c1.234_k0.13_r0_id4n1", "openqcd"),
        ("hirep/HiRep_qcd1_pb_L8T8_b6.0_c1.234_k0.13_r0_id4n1", "hirep"),
    ],
)
def test_binary_formats_are_recognised(real_file, name, format):
    assert detect(real_file(name)).name == format
