"""The processes of a run wait for each other before they join.

Paddle's own wait, in paddle.distributed.init_parallel_env, is in C++ and holds Python's lock: signals are not handled
in it, and a process whose peer has ended stays until it is killed. This one can be interrupted, and comes first.
"""

import contextlib
import selectors
import socket
import time

_JOIN_SECONDS = 900.0  # as Paddle's
_PORT_SECONDS = 30.0
_GO = b"go\n"
_PAUSE_SECONDS = 0.05


def wait_for_all(
    master: tuple[str, int], rank: int, size: int, seconds: float = _JOIN_SECONDS
) -> dict[int, socket.socket]:
    """Until all processes are here, at most `seconds`; afterwards the first one opens Paddle's store at once.

    Args:
        master: host and port where the store will be; until then the first process listens there.

    Returns:
        Connections that stay open, by the rank at their other end: the first process has one to each of the others.

    Raises:
        ConnectionError: processes are missing, or the port belongs to somebody else.
    """
    until = time.monotonic() + seconds
    return _welcome(master, size, until) if rank == 0 else {0: _announce(master, rank, until)}


def _welcome(master: tuple[str, int], size: int, until: float) -> dict[int, socket.socket]:
    server = _listening(master, until)
    ranks: dict[socket.socket, int] = {}
    with server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(set(ranks.values())) < size - 1:
            if time.monotonic() > until:
                missing = sorted(set(range(1, size)) - set(ranks.values()))
                raise ConnectionError(f"of {size} processes, {missing} have not joined; their own logs have the reason")
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
        connection.sendall(_GO)
    return {rank: connection for connection, rank in ranks.items()}


def _listening(master: tuple[str, int], until: float) -> socket.socket:
    """A server at the port of `master`, which the run before this one may still be leaving."""
    until = min(until, time.monotonic() + _PORT_SECONDS)
    while True:
        try:
            return socket.create_server(("", master[1]))
        except OSError as error:
            if time.monotonic() > until:
                raise ConnectionError(
                    f"the processes of this run cannot connect at {master[0]}:{master[1]}: {error.strerror}; "
                    "another program may have the port: start again, or give the launcher another --master"
                ) from error
            time.sleep(_PAUSE_SECONDS)


def _announced(connection: socket.socket, size: int) -> int | None:
    """The rank that a process has sent, or None."""
    try:
        text = connection.recv(64)
    except OSError:
        return None
    word, _, number = text.decode("ascii", "replace").strip().partition(" ")
    return int(number) if word == "plsc" and number.isdecimal() and 0 < int(number) < size else None


def _announce(master: tuple[str, int], rank: int, until: float) -> socket.socket:
    while (connection := _let_in(master, rank, until)) is None:
        _pause(master, until)
    while True:  # until the store listens: Paddle would ask again after three seconds only
        try:
            socket.create_connection(master, timeout=5.0).close()
            return connection
        except OSError:
            _pause(master, until)


def _let_in(master: tuple[str, int], rank: int, until: float) -> socket.socket | None:
    """The connection on which the first process has answered that all are here; None where it is not there yet."""
    try:
        connection = socket.create_connection(master, timeout=5.0)
    except OSError:
        return None
    try:
        connection.sendall(f"plsc {rank}\n".encode())
        connection.settimeout(1.0)
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                if connection.recv(len(_GO)) == _GO:
                    return connection
                break  # it has ended
    except OSError:
        pass  # it has ended
    connection.close()
    return None


def _pause(master: tuple[str, int], until: float) -> None:
    if time.monotonic() > until:
        raise ConnectionError(
            f"the first process of this run cannot be reached at {master[0]}:{master[1]}; its own log has the reason"
        )
    time.sleep(_PAUSE_SECONDS)
