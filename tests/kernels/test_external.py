"""Updates by another program: what it is given, what is made of it, and how it may fail."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

import flowmc
from flowmc.actions import ExternalAction, Wilson
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.io import read_field, write_field
from flowmc.kernels import HMC, Cycle, External, NumpyFunction, UpdateFailedError
from tests.processes import environment
from tests.processes import flowmc as flowmc_command
from tests.run.small_runs import digests

THEORY = {"action": "external", "group": "SU(2)", "lattice": [4, 4], "couplings": {"beta": 2.5}}
RUN = {
    "thermalization": 1,
    "updates": 3,
    "checkpoint_every": 1,
    "report": False,
}


def program(path, text, name="update.sh"):
    """Write a program of the shell, to which the words of the command are $1, $2, ..."""
    file = path / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def tables(*words, chains=None, run=None, theory=THEORY, **keys):
    command = ["./update.sh", "{input}", "{output}", *words]
    update = {"kernel": "external", "format": "npy", "command": command, **keys}
    return {
        "theory": theory,
        "chains": {"seed": 3, "count": 2, **(chains or {})},
        "update": [update],
        "run": {**RUN, **(run or {})},
    }


def run(path, config, *more, name="out"):
    (path / "a.toml").write_text(toml_text(config))
    return main(["run", str(path / "a.toml"), "--output", str(path / name), *more])


def test_a_command_is_run_once_for_each_update_with_all_that_it_asks_for(tmp_path):
    program(tmp_path, 'echo "$3" >> calls; cp "$1" "$2"; echo "dH = $4  ACC = 1"')
    values = {"energy_error": r"dH *= *(\S+)", "accepted": r"ACC *= *([01])"}
    config = tables(
        "{number:03d} {chain} {replica} {beta} {seed} {{}} {directory}", "0.{chain}", values=values
    )
    assert run(tmp_path, config) == 0
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[:2] for call in calls] == [[f"{n:03}", c] for n in range(1, 5) for c in "01"]
    assert {tuple(call[2:4]) for call in calls} == {("0", "2.5")} and calls[0][5] == "{}"
    assert calls[3][6] == str(tmp_path / "out/external/chain1")
    seeds = [int(call[4]) for call in calls]
    assert len({*seeds}) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**60
    measured = flowmc.read_run(tmp_path / "out").production.kernels["external"]
    assert measured["energy_error"].tolist() == [[0.0, 0.1]] * 3
    assert measured["accepted"].tolist() == [[1, 1]] * 3
    # Nothing of the field has changed, so a rejection would not have been seen without the value.
    assert not [path for path in (tmp_path / "out/external").rglob("*") if path.is_file()]


def test_what_was_read_is_what_the_next_kernel_gets(tmp_path):
    """Files made beforehand are handed out one after the other."""
    action = ExternalAction("SU(2)", [4, 4])
    fields = [action.hot(1, torch.Generator().manual_seed(n)) for n in range(1, 5)]
    for number, field in enumerate(fields, start=1):
        write_field(tmp_path / f"made.{number}", field, action, format="npy")
    program(tmp_path, 'cp "$1" "got.$3"; cp "made.$3" "$2"')
    config = tables("{number}", chains={"count": 1})
    config["run"]["save_every"] = 1
    config["ensemble"] = {"format": "npy"}
    assert run(tmp_path, config) == 0
    for number in range(2, 5):
        before = read_field(tmp_path / f"got.{number}", action)
        assert torch.equal(before, fields[number - 2])
    assert torch.equal(read_field(tmp_path / "out/ensemble/conf.3", action), fields[3])
    accepted = flowmc.read_run(tmp_path / "out").production.kernels["external"]["accepted"]
    assert accepted.tolist() == [[1]] * 3  # the field has changed


FAILURES = {
    "exit status": (
        "echo lost >&2; exit 3",
        "ended with exit status 3; standard error ends with 'lost'",
    ),
    "signal": ("kill -9 $$", "was ended by SIGKILL"),
    "nothing": ("echo fine", "ended with exit status 0 but has not written"),
    "rubbish": ('echo rubbish > "$2"', "what it has written is not usable"),
    "half a file": ('head -c 300 "$1" > "$2"', "what it has written is not usable"),
    "another lattice": ('cp lattice.npy "$2"', "has lattice = 4x4"),
    "another group": ('cp group.npy "$2"', "holds SU(3) links, but the theory is SU(2)"),
    "NaN": ('cp nan.npy "$2"', "not usable"),
    "not unitary": ('cp unitary.npy "$2"', "links are not in SU(2)"),
    "single precision": ('cp single.npy "$2"', "is in single precision"),
    "no end": ("sleep 1000", "did not end within 0.3 s"),
    "no value": ('cp "$1" "$2"; echo dE = 3', r"values: energy_error = 'dH = (\\S+)' is not found"),
}


ALWAYS = 'echo "dH = $3"; cp made.npy "$2"'


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of files of all kinds, and of a run that nothing has disturbed."""
    path = tmp_path_factory.mktemp("whole")
    action = ExternalAction("SU(2)", [4, 4])
    rng = torch.Generator().manual_seed(1)
    made = {
        "made": (action, 1.0),
        "lattice": (action.on_lattice([4, 2]), 1.0),
        "group": (ExternalAction("SU(3)", [4, 4]), 1.0),
        "nan": (action, np.nan),
        "unitary": (action, 1.001),
        "single": (action, 1.0),
    }
    for name, (theory, factor) in made.items():
        file = path / f"{name}.npy"
        write_field(file, theory.hot(1, rng), theory, format="npy")
        array = np.load(file) * factor
        np.save(file, array.astype(np.complex64) if name == "single" else array)
    program(path, ALWAYS)
    assert run(path, failing()) == 0
    return path


def failing(timeout="1m"):
    values = {"energy_error": r"dH = (\S+)"}
    return tables("{number}", values=values, timeout=timeout, chains={"count": 1})


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_is_one_sentence_and_leaves_the_last_checkpoint(
    tmp_path, whole, capsys, failure
):
    """The third update fails once; what goes on from there is what would have been without."""
    text, sentence = FAILURES[failure]
    for file in whole.glob("*.npy"):
        (tmp_path / file.name).symlink_to(file)
    # A value that is never found shows in the first update.
    when = 1 if failure == "no value" else 3
    config = failing(0.3 if failure == "no end" else "1m")
    program(tmp_path, f'[ "$3" = {when} ] && {{ {text}; exit; }}; {ALWAYS}')
    assert run(tmp_path, config) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    begins = f"flowmc: error: chain 0, replica 0, update {when}: the command ./update.sh"
    assert said.startswith(begins)
    assert f"the last good checkpoint, update {when - 1}, is in" in said
    assert sentence in said
    program(tmp_path, ALWAYS)
    assert run(tmp_path, failing(), "--resume") == 0
    assert without_timeout(tmp_path / "out") == without_timeout(whole / "out")


def without_timeout(directory):
    return {name: one for name, one in digests(directory).items() if name != "config.toml"}


REFUSALS = {
    "a placeholder": (
        {"command": ["./update.sh", "{input}", "{output}", "{beat}"]},
        "did you mean 'beta'",
    ),
    "a brace": ({"command": ["./update.sh", "{input}", "{output}", "{"]}, "write {{ for a brace"),
    "a format": ({"command": ["./update.sh", "{input}", "{output}", "{seed:q}"]}, "not usable"),
    "no output": ({"command": ["./update.sh", "{input}"]}, "no word holds {output}"),
    "no words": ({"command": []}, "should list a program"),
    "no program": ({"command": ["./missing", "{input}", "{output}"]}, "there is no program"),
    "not in PATH": (
        {"command": ["no-such", "{input}", "{output}"]},
        "no program 'no-such' in PATH",
    ),
    "not executable": ({"command": ["./a.toml", "{input}", "{output}"]}, "chmod +x"),
    "expression": ({"values": {"dH": "("}}, "no regular expression"),
    "groups": ({"values": {"dH": "dH"}}, "has 0 groups"),
    "a name": ({"values": {"tried": "(.)"}}, "one that is taken"),
    "file format": ({"format": "nersc"}, "nersc files hold"),
    "unknown format": ({"format": "nersk"}, "nersc"),
    "parallel": ({"parallel": 0}, "at least 1"),
    "timeout": ({"timeout": "soon"}, "a time such as"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path, capsys, refusal):
    keys, sentence = REFUSALS[refusal]
    program(tmp_path, "echo >> called")
    assert run(tmp_path, tables(**keys)) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1 and "[[update]] 1 (external)" in said
    assert not (tmp_path / "called").exists() and not (tmp_path / "out").exists()


def test_single_precision_is_taken_where_it_is_asked_for(tmp_path, whole):
    """The program knows single precision only; the field is then on the group in double."""
    action = ExternalAction("SU(2)", [4, 4])
    program(tmp_path, f'cp {whole}/single.npy "$2"')
    kernel = External(
        action, tmp_path, command=["./update.sh", "{input}", "{output}"], format="npy", precision=32
    )
    found = flowmc.sample(kernel, action.cold(1), 2, observables=[])
    single = torch.from_numpy(np.load(whole / "single.npy"))
    field = found.field
    assert float((field.mH @ field - torch.eye(2)).abs().max()) < 1e-14
    assert found.acceptance == {"external": 0.5}  # it has moved once
    assert field.dtype == torch.complex128 and single.dtype == torch.complex64


def test_commands_of_chains_and_replicas_run_at_the_same_time(tmp_path):
    """Each waits until all four have come."""
    text = 'touch "here.$3.$4"; while [ $(ls here.* | wc -l) -lt 4 ]; do sleep 0.01; done'
    program(tmp_path, text + '; cp "$1" "$2"')
    config = tables(
        "{chain}", "{replica}", parallel=4, timeout="20s", run={"thermalization": 0, "updates": 1}
    )
    config["theory"] = {"action": "wilson", "group": "SU(2)", "lattice": [4, 4], "beta": 2.0}
    config["ladder"] = {"beta": [2.0, 1.5]}
    config["update"].append({"kernel": "exchange"})
    assert run(tmp_path, config) == 0
    names = sorted(path.name for path in tmp_path.glob("here.*"))
    assert names == ["here.0.0", "here.0.1", "here.1.0", "here.1.1"]


LEFTOVERS = """
[ -e killed ] || [ "$3" != 3 ] || {
  (setsid sleep 1000 & echo $! > pids)
  sleep 1000 & echo $! >> pids; echo $$ >> pids
  touch killed
  kill -9 WHOM
  wait
}
"""


@pytest.mark.parametrize("whom", ["flowmc", "supervisor", "command"])
def test_a_kill_leaves_no_process_and_no_other_result(tmp_path, whole, whom):
    """Of flowmc, of what stands between, of the command; with processes of a session of their own.

    A supervisor's parent is flowmc.
    """
    (tmp_path / "made.npy").symlink_to(whole / "made.npy")
    number = {
        "flowmc": "$(cut -d' ' -f4 /proc/$PPID/stat)",
        "supervisor": "$PPID",
        "command": "$$",
    }[whom]
    program(tmp_path, LEFTOVERS.replace("WHOM", number) + ALWAYS)
    (tmp_path / "a.toml").write_text(toml_text(failing()))
    words = flowmc_command("run", "a.toml", "--output", "out", "--resume")
    first = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    if whom == "flowmc":
        assert first.returncode == -signal.SIGKILL
    else:
        assert first.returncode == 1
        said = {"supervisor": "its supervisor was killed", "command": "was ended by SIGKILL"}
        assert said[whom] in first.stderr and "update 2, is in" in first.stderr
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    # With its supervisor only what that has started itself is sure to end.
    gone = pids[2:] if whom == "supervisor" else pids
    until = time.monotonic() + 20
    while any(map(is_alive, gone)):
        assert time.monotonic() < until, f"{gone} live on"
        time.sleep(0.02)
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)
    second = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert digests(tmp_path / "out") == digests(whole / "out")


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_signals_to_stop_let_the_update_end(tmp_path, whole):
    """SIGTERM to flowmc in the third update: it ends, is in the checkpoint, and the run goes on."""
    (tmp_path / "made.npy").symlink_to(whole / "made.npy")
    program(
        tmp_path,
        '[ -e asked ] || [ "$3" != 3 ] || { touch asked; '
        "kill -TERM $(cut -d' ' -f4 /proc/$PPID/stat); sleep 0.3; }; " + ALWAYS,
    )
    (tmp_path / "a.toml").write_text(toml_text(failing()))
    words = flowmc_command("run", "a.toml", "--output", "out", "--resume")
    first = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0 and "stopped after update 3 of 4" in first.stderr
    subprocess.run(words, env=environment(), cwd=tmp_path, check=True, capture_output=True)
    assert digests(tmp_path / "out") == digests(whole / "out")


def test_a_launcher_of_this_job_is_none_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("MINE", "1")
    action = ExternalAction("SU(2)", [2, 2])
    program(tmp_path, 'env > environment; cp "$1" "$2"')
    kernel = External(
        action, tmp_path, command=["./update.sh", "{input}", "{output}"], format="npy"
    )
    flowmc.sample(kernel, action.cold(1), 1, observables=[])
    found = (tmp_path / "environment").read_text().splitlines()
    assert "MINE=1" in found and "PMI_RANK=1" not in found


def test_what_needs_the_action_refuses_by_name(tmp_path, capsys):
    program(tmp_path, 'cp "$1" "$2"')
    for kernel in ("hmc", "independence", "local_flow", "sign_flip"):
        config = tables()
        flow = {"flow": "zoo:u1_2d_b7.00"} if kernel in ("independence", "local_flow") else {}
        config["update"].append({"kernel": kernel, **flow})
        assert run(tmp_path, config) == 2
        said = capsys.readouterr().err
        assert f"[[update]] 2 ({kernel})" in said and len(said.splitlines()) == 1
        if kernel == "hmc":
            assert "another program knows it" in said
    config = tables() | {"measure": {"observables": ["plaquette", "action"]}}
    assert run(tmp_path, config) == 2
    assert "[measure]: action: the action is" in capsys.readouterr().err


def test_a_step_is_one_command(tmp_path, whole, capsys):
    program(tmp_path, 'echo "$3 $4" >> calls; cp made.npy "$2"; echo "dH = 0.5"')
    (tmp_path / "made.npy").symlink_to(whole / "made.npy")
    action = ExternalAction("SU(2)", [4, 4])
    write_field(tmp_path / "lat.7.npy", action.cold(1), action, format="npy")
    config = tables("{number}", "{seed}", values={"dH": "dH = (.*)"}, chains={"count": 1})
    (tmp_path / "a.toml").write_text(toml_text(config))
    words = [str(tmp_path / "lat.7.npy"), str(tmp_path / "lat.8.npy")]
    config = ["--config", str(tmp_path / "a.toml")]
    for number in ("8", "8", "9"):
        assert main(["step", *words, *config, "--number", number]) == 0
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[0] for call in calls] == ["8", "8", "9"]
    assert calls[0] == calls[1] and calls[1][1] != calls[2][1]
    written, made = (np.load(tmp_path / name) for name in ("lat.8.npy", "made.npy"))
    assert np.array_equal(written, made)
    assert "external accepted 100%" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))


def test_functions_of_arrays(tmp_path):
    """The same as a kernel of flowmc, in the order of files; what is no field is refused."""
    action = Wilson("SU(2)", [4, 3], beta=2.0)
    seen = []

    def conjugate(links, request):
        seen.append((links.shape, request.number, request.seed, dict(request.couplings)))
        return links.conj(), {"accepted": False}

    kernel = NumpyFunction(action, conjugate)
    start = action.hot(2, torch.Generator().manual_seed(2))
    found = flowmc.sample(Cycle([kernel, HMC(action, steps=3)]), start, 2, seed=5)
    shapes, numbers, seeds, couplings = zip(*seen, strict=True)
    assert {*shapes} == {(3, 4, 2, 2, 2)} and numbers == (1, 1, 2, 2) and len({*seeds}) == 4
    assert couplings[0] == {"beta": 2.0} and found.acceptance["numpy_function"] == 0.0
    alone = flowmc.sample(kernel, start, 1, observables=["plaquette"])
    assert torch.equal(alone.field, start.conj())
    for wrong, sentence in (
        (lambda links, request: links[:-1], "array of shape"),
        (lambda links, request: links.astype(np.complex64), "of type complex64"),
        (lambda links, request: links * np.nan, "not finite"),
        (lambda links, request: links * 1.01, r"not in SU\(2\)"),
        (lambda links, request: (links, {"dH": 1.0}), "do not declare"),
        (lambda links, request: links / "a", "TypeError|UFuncTypeError"),
    ):
        with pytest.raises(UpdateFailedError, match=sentence):
            flowmc.sample(NumpyFunction(action, wrong), start, 1)
