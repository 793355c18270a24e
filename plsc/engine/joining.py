"""The processes of a run wait for each other before they join.

Paddle's own wait, in paddle.distributed.init_parallel_env, is in C++ and holds Python's lock: signals are not handled
in it, and a process whose peer has ended stays until it is killed. This one can be interrupted, and comes first.
"""

import selectors
import socket
import time

from plsc.errors import DeviceError

_JOIN_SECONDS = 900.0  # as Paddle's
_GO = b"go\n"
_PAUSE_SECONDS = 0.05


def wait_for_all(master: tuple[str, int], rank: int, size: int, seconds: float = _JOIN_SECONDS) -> None:
    """Until all processes are here, at most `seconds`; afterwards the first one opens Paddle's store at once.

    Args:
        master: host and port where the store will be; until then the first process listens there.

    Raises:
        DeviceError: processes are missing, or the port belongs to somebody else.
    """
    until = time.monotonic() + seconds
    if rank == 0:
        _welcome(master, size, until)
    else:
        _announce(master, rank, until)


def _welcome(master: tuple[str, int], size: int, until: float) -> None:
    try:
        server = socket.create_server(("", master[1]))
    except OSError as error:
        raise DeviceError(
            f"the processes of this run cannot meet at {master[0]}:{master[1]}: {error.strerror}; "
            "another program may have the port: start again, or give the launcher another --master"
        ) from error
    ranks: dict[socket.socket, int] = {}
    with server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(set(ranks.values())) < size - 1:
            if time.monotonic() > until:
                missing = sorted(set(range(1, size)) - set(ranks.values()))
                raise DeviceError(f"of {size} processes, {missing} have not come; their own logs have the reason")
            for key, _ in selector.select(timeout=1.0):
                if key.fileobj is server:
                    connection, _ = server.accept()
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]
                rank = _announced(connection, size)
                if rank is None:  # it has ended, or is none of ours
                    selector.unregister(connection)
                    ranks.pop(connection, None)
                    connection.close()
                else:
                    ranks[connection] = rank
    # whoever connects from now on reaches Paddle's store, which listens at this port next
    for connection in ranks:
        with connection:
            connection.sendall(_GO)


def _announced(connection: socket.socket, size: int) -> int | None:
    """The rank that a process has sent, or None."""
    try:
        text = connection.recv(64)
    except OSError:
        return None
    word, _, number = text.decode("ascii", "replace").strip().partition(" ")
    return int(number) if word == "plsc" and number.isdecimal() and 0 < int(number) < size else None


def _announce(master: tuple[str, int], rank: int, until: float) -> None:
    while not _let_in(master, rank, until):
        _pause(master, until)
    while True:  # until the store listens: Paddle would ask again after three seconds only
        try:
            socket.create_connection(master, timeout=5.0).close()
            return
        except OSError:
            _pause(master, until)


def _let_in(master: tuple[str, int], rank: int, until: float) -> bool:
    """Whether the first process has answered that all are here; False where it is not there yet, or has ended."""
    try:
        with socket.create_connection(master, timeout=5.0) as connection:
            connection.sendall(f"plsc {rank}\n".encode())
            connection.settimeout(1.0)
            while time.monotonic() < until:
                try:
                    return connection.recv(len(_GO)) == _GO
                except TimeoutError:
                    continue
    except OSError:
        pass  # nobody listens there yet
    return False


def _pause(master: tuple[str, int], until: float) -> None:
    if time.monotonic() > until:
        raise DeviceError(
            f"the first process of this run cannot be reached at {master[0]}:{master[1]}; its own log has the reason"
        )
    time.sleep(_PAUSE_SECONDS)
