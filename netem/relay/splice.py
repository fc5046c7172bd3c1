"""Two TCP connections joined by the kernel: what one brings goes to the other, never through this process's memory."""

import asyncio
import contextlib
import os
import socket

PIPE_BYTES = 2**16
FLAGS = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)


class Pipes:
    """Pipes that hold what a socket can't take yet; each is used again, so idle connections need none."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int]:
        """(reading end, writing end) of an empty pipe. Raises OSError: descriptors have run out."""
        return self._free.pop() if self._free else os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def give_back(self, pipe: tuple[int, int]) -> None:
        """`pipe` is empty again."""
        self._free.append(pipe)

    def close(self) -> None:
        """Close the free ones."""
        while self._free:
            discard(self._free.pop())


def discard(pipe: tuple[int, int]) -> None:
    """Close a pipe, whatever it holds."""
    for end in pipe:
        os.close(end)


class _Way:
    """One direction. It reads only while its pipe is empty: then the sender has to wait."""

    def __init__(self, pipes: Pipes, source: socket.socket, sink: socket.socket, done: "asyncio.Future[None]") -> None:
        self._pipes, self._source, self._sink, self._done = pipes, source, sink, done
        self._loop = asyncio.get_running_loop()
        self._pipe: tuple[int, int] | None = None
        self._held = 0
        self.ended = False
        self.carried_bytes = 0

    def start(self) -> None:
        self._loop.add_reader(self._source, self._read)

    def close(self) -> None:
        if self._pipe is not None:
            (discard if self._held else self._pipes.give_back)(self._pipe)
            self._pipe = None

    def _read(self) -> None:
        try:
            if self._pipe is None:
                self._pipe = self._pipes.take()
            moved = os.splice(self._source.fileno(), self._pipe[1], PIPE_BYTES, flags=FLAGS)
        except BlockingIOError:
            self._release()
            return
        except OSError as error:
            self._fail(error)
            return
        if moved == 0:
            self._loop.remove_reader(self._source)
            self._release()
            self._end()
            return
        self._held = moved
        self._write()

    def _write(self) -> None:
        """Called with something in the pipe."""
        assert self._pipe is not None
        try:
            while self._held:
                moved = os.splice(self._pipe[0], self._sink.fileno(), self._held, flags=FLAGS)
                self._held -= moved
                self.carried_bytes += moved
        except BlockingIOError:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._go_on)
            return
        except OSError as error:
            self._fail(error)
            return
        self._release()

    def _go_on(self) -> None:
        self._loop.remove_writer(self._sink)
        self._loop.add_reader(self._source, self._read)
        self._write()

    def _release(self) -> None:
        if self._pipe is not None and not self._held:
            self._pipes.give_back(self._pipe)
            self._pipe = None

    def _end(self) -> None:
        self.ended = True
        with contextlib.suppress(OSError):  # the peer has gone: the other direction sees it
            self._sink.shutdown(socket.SHUT_WR)
        if not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: OSError) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        if not self._done.done():
            self._done.set_exception(error)


async def join(pipes: Pipes, near: socket.socket, far: socket.socket) -> tuple[int, int]:
    """Join two non-blocking sockets until both directions have ended or one is broken; both are closed then.

    Returns:
        The bytes that went from `near` to `far`, and back.
    """
    loop = asyncio.get_running_loop()
    finished = [loop.create_future(), loop.create_future()]
    up, down = _Way(pipes, near, far, finished[0]), _Way(pipes, far, near, finished[1])
    try:
        up.start()
        down.start()
        await asyncio.gather(*finished)
    except OSError:
        pass
    finally:
        for each in finished:
            each.cancel()
        for end in (near, far):
            loop.remove_reader(end)
            loop.remove_writer(end)
            end.close()
        up.close()
        down.close()
    return up.carried_bytes, down.carried_bytes
