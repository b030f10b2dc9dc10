"""Forks processes that have the package imported already: the folder of the socket.

They are asked for by `fork_client`, whose arguments, environment, folder, ignored signals, standard
streams and connection to an MPI launcher they take over.  Ends when its standard input does.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from pathlib import Path

import torch

from flowmc.actions import Phi4, Wilson
from flowmc.cli import _COMMANDS
from flowmc.observables.scalar import action_density
from flowmc.training.optimisers import make_optimiser

# What the interpreter and the libraries look at while they are loaded.
LOADED_WITH = ("PYTHON", "OMP_", "MKL_", "NUMBA_", "LD_", "TORCH")
# What torch writes there itself, for compiled graphs, of which there are none here.
OF_TORCH = ("TORCHINDUCTOR_",)


def serve(listener):
    """Fork for every client; return its request in the new process, and None at the end."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return look_after(client)
        client.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def look_after(client):
    """Fork, tell the client how its process ends, end with it; return the request in the child."""
    text, streams, _, _ = socket.recv_fds(client, 65536, 4)
    while not text.endswith(b"\n"):
        text += client.recv(65536)
    request = json.loads(text)
    child = os.fork()
    if child == 0:
        client.close()
        take_over(request, streams)
        return request
    for stream in (0, 1, 2, *streams):
        os.close(stream)

    def end_with_client():
        # A client that was killed before it read what it was told resets the connection.
        with contextlib.suppress(OSError):
            client.recv(1)
        os.kill(child, signal.SIGKILL)

    threading.Thread(target=end_with_client, daemon=True).start()
    with contextlib.suppress(OSError):
        client.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def take_over(request, streams):
    """Make this process what the client would have been."""
    os.chdir(request["folder"])
    other = request["environment"].items() ^ os.environ.items()
    names = {name for name, _ in other if not name.startswith(OF_TORCH)}
    late = sorted(name for name in names if name.startswith(LOADED_WITH))
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, stream in zip((0, 1, 2, *request["launcher"]), streams, strict=True):
        os.dup2(stream, number)
        if stream != number:
            os.close(stream)
        os.set_inheritable(number, True)
    for name, is_ignored in request["signals"].items():
        usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(signal.Signals[name], signal.SIG_IGN if is_ignored else usual)
    assert not late, f"{late} would come too late: start an own process"


def run(program, *arguments):
    """Run a program, a module after ``-m`` or code after ``-c``, as the interpreter would."""
    if program == "-c":
        code, *arguments = arguments
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif program == "-m":
        module, *arguments = arguments
        sys.argv, sys.path[0] = [module, *arguments], os.getcwd()
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [program, *arguments], str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")


def end(status):
    """Do what belongs to the end of a process, but do not take all that was forked to pieces."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if "mpi4py.MPI" in sys.modules:
        mpi = sys.modules["mpi4py.MPI"]
        if mpi.Is_initialized() and not mpi.Is_finalized():
            mpi.Finalize()
        # MPICH says goodbye to its launcher when C exits.
        ctypes.CDLL(None).exit(status)
    os._exit(status)


if __name__ == "__main__":
    for module, _ in _COMMANDS.values():
        importlib.import_module(module)
    # What loads its libraries when it is first used: they take seconds in every process.
    for module in ("matplotlib.pyplot", "matplotlib.backends.backend_svg", "pydantic.main"):
        importlib.import_module(module)
    make_optimiser("adam", [torch.nn.Parameter(torch.zeros(1))], 1.0, (0.9, 0.999))
    # The first compiled kernels of a process take more seconds.
    for action in (Phi4([2, 2], m2=1.0, lam=1.0), Wilson("U(1)", [2, 2], beta=1.0)):
        action_density(action.cold(1), action)
    gc.collect()
    gc.freeze()  # so that no collection touches, and copies, all of it
    with socket.socket(socket.AF_UNIX) as listener:
        # Sockets have short names only.
        os.chdir(sys.argv[1])
        listener.bind("socket")
        listener.listen(64)
        print(flush=True)
        request = serve(listener)
    if request:
        try:
            run(*request["arguments"])
            status = 0
        except SystemExit as ended:
            if isinstance(ended.code, str):
                raise
            status = int(ended.code or 0)
        end(status)
