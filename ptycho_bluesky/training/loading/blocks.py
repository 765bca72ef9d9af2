"""Blocks of bytes of a file: several large ones at once past the page cache, or many small ones announced."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockFile", "BlockReaders", "Span"]

READERS = 3
"""Blocks under way at once: a disk is fast only when several requests wait for it."""

Span = tuple[int, int]
"""First byte and number of bytes."""
Use = Callable[[int, NDArray[np.uint8]], None]
"""What is done with the number of a block and its content."""


class BlockReaders:
    """Threads that read blocks and use them, and the memory that they read into.

    Memory is used again and again: fresh one would cost as much as unpacking. The threads begin with the first stream
    and live until they are closed: under load a thread takes longer to begin than a block to be read.

    Parameters
    ----------
    block_bytes : int
        Of the memory of each thread; one that is too small for a block is replaced.
    """

    def __init__(self, block_bytes: int) -> None:
        self._part_bytes = block_bytes + 2 * mmap.PAGESIZE
        self._own = threading.local()
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    @property
    def threads(self) -> ThreadPoolExecutor:
        """The threads; a process that was forked off has none of its parent's."""
        if self._threads is None or self._process != os.getpid():
            self._process = os.getpid()
            self._threads = ThreadPoolExecutor(READERS, "read-blocks")
        return self._threads

    def memory(self, num_bytes: int) -> memoryview:
        """Memory of the thread that calls; it begins at a page, as requests past the page cache must."""
        found: mmap.mmap | None = getattr(self._own, "memory", None)
        if found is None or len(found) < num_bytes:
            size = max(num_bytes, self._part_bytes)
            found = self._own.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return memoryview(found)

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()


class BlockFile:
    """A file that is read in blocks.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OSError
        It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self._direct: int | None = None

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)
        if self._direct is not None and self._direct != self._descriptor:
            os.close(self._direct)
        self._direct = None

    def announced(self, spans: Sequence[Span], readers: BlockReaders, use: Use) -> None:
        """Use blocks in order; the kernel hears of all of them first, and reads on while the first is used.

        Raises
        ------
        OSError
            The file ends before a block does.
        """
        for base, length in spans:
            os.posix_fadvise(self._descriptor, base, length, os.POSIX_FADV_WILLNEED)
        for number, span in enumerate(spans):
            use(number, _read(self._descriptor, span, readers))

    def streamed(self, spans: Sequence[Span], readers: BlockReaders, use: Use) -> None:
        """Use large blocks, `READERS` of them under way at once, past the page cache; each is used by its reader.

        What passes through the page cache is copied once more, and drives out of it what is used again; a corpus
        larger than memory is not. Where a file system knows no such requests, the page cache serves.

        Raises
        ------
        OSError
            The file ends before a block does.
        """
        descriptor = self._direct_descriptor()

        def read_and_use(number: int) -> None:
            use(number, self._read_direct(descriptor, spans[number], readers))

        waiting = [readers.threads.submit(read_and_use, number) for number in range(len(spans))]
        try:
            for each in waiting:
                each.result()
        finally:  # what is still under way uses the caller's memory, and this file
            for each in waiting:
                each.cancel()
            wait(waiting)

    def _read_direct(self, descriptor: int, span: Span, readers: BlockReaders) -> NDArray[np.uint8]:
        try:
            return _read(descriptor, span, readers)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _read(self._descriptor, span, readers)

    def _direct_descriptor(self) -> int:
        if self._direct is None:
            try:
                self._direct = os.open(self._path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct = self._descriptor
        return self._direct


def _read(descriptor: int, span: Span, readers: BlockReaders) -> NDArray[np.uint8]:
    """Bytes of a span, read in whole pages."""
    base, length = span
    before = base % mmap.PAGESIZE
    wanted = before + length
    pages = -(-wanted // mmap.PAGESIZE) * mmap.PAGESIZE
    view, done = readers.memory(pages)[:pages], 0
    while done < wanted:
        count = os.preadv(descriptor, [view[done:]], base - before + done)
        if not count:
            raise OSError(f"the file ends at byte {base - before + done}; {wanted - done} more were expected")
        done += count
    return np.frombuffer(view, np.uint8)[before:wanted]
