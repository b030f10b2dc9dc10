"""Has `fork_server` run a program in the place of this process: SERVER PROGRAM ARGUMENT...

Signals go on to the program, and this process ends with it and as it does.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = tuple(
    getattr(signal, f"SIG{name}") for name in ("HUP", "INT", "TERM", "USR1", "USR2", "XCPU")
)


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    address, *arguments = sys.argv[1:]
    launcher = [int(os.environ["PMI_FD"])] if "PMI_FD" in os.environ else []
    ignored = [s for s in PASSED_ON if signal.getsignal(s) == signal.SIG_IGN]
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "launcher": launcher,
        "signals": {s.name: s in ignored for s in PASSED_ON},
    }
    folder = os.open(os.getcwd(), os.O_RDONLY)
    os.chdir(address)  # a socket's name may not be longer than a hundred characters
    with socket.socket(socket.AF_UNIX) as server:
        server.connect("socket")
        os.fchdir(folder)
        text = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(server, [text], [0, 1, 2, *launcher])
        server.sendall(text[sent:])
        for descriptor in launcher:
            os.close(descriptor)
        answers = server.makefile()
        child = int(answers.readline())
        for number in PASSED_ON:
            if number not in ignored:
                signal.signal(number, lambda number, _: os.kill(child, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        status = int(answers.readline())
    if status < 0:
        if -status in PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
