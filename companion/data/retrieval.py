"""One transfer over HTTP into a partial file that the next can go on with.

Servers are not trusted: a body may not be longer than the file can be, may not be encoded once more on the way, and
the whole transfer, from the first name look-up to the last byte, must keep a least average speed. pooch does the
transfer, in a thread, because it waits in the system for each full chunk and cannot look at a clock.
"""

import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from tqdm import tqdm

from companion.errors import DataError, DownloadError
from companion.files import open_plain

if TYPE_CHECKING:
    import requests

TIMEOUT = 30.0  # seconds without an answer or a byte, after which a server is given up
GRACE = 60.0  # seconds in which a transfer may be as slow as it likes
LEAST_SPEED = 5_000  # bytes a second on average after that; a modem is faster
LOOK = 0.2  # seconds between two looks at the speed
CHUNK = 1 << 16  # bytes
REDIRECTS = 5


class GivenUpError(DownloadError):
    """A server that is not worth another attempt."""


class _MovedError(DataError):
    """The file is elsewhere; the message is the address."""


class _CompleteError(DataError):
    """The server has nothing beyond what is there."""


class Part:
    """A partial file: opened where nothing can have been planted, and never longer than `limit` bytes.

    Use it as a context manager: at the end the file is closed, and removed if there is nothing in it.

    Raises:
        OSError: something that is no plain file stands in its place, or as the system reports it.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.file = os.fdopen(open_plain(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)
        self.size = os.fstat(self.file.fileno()).st_size
        if self.size > limit:
            self.cut()

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        if not self.size:
            self.path.unlink(missing_ok=True)

    def cut(self) -> None:
        """Throws away what there is."""
        self.file.truncate(0)
        self.size = 0

    def append(self, data: bytes) -> None:
        if self.size + len(data) > self.limit:
            raise GivenUpError(f"it sends more than the {self.limit:,} bytes that it can have")
        self.file.seek(self.size)
        left = memoryview(data)
        while left:
            left = left[self.file.write(left) :]
        self.size += len(data)

    def read(self) -> bytes:
        self.file.seek(0)
        return self.file.readall()

    def finish(self, target: Path) -> None:
        """Puts the bytes on the disk and gives the file its name."""
        os.fsync(self.file.fileno())
        if os.name == "nt":  # which renames no open file
            self.file.close()
        os.replace(self.path, target)


class _Transfer:
    """One attempt: what pooch calls, and what can be stopped from outside while pooch waits."""

    def __init__(self, url: str, part: Part, label: str) -> None:
        self.url = url
        self.part = part
        self.offset = part.size
        self.label = label
        self.received = 0
        self.expected = -1
        self.failure: Exception | None = None
        self.stopped = False
        self.lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self.lock:
            if self.stopped:
                raise GivenUpError("it was stopped")
            self.part.append(data)
            self.received += len(data)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def stop(self) -> None:
        """Nothing is written any more after this, even if the thread still waits for the server."""
        with self.lock:
            self.stopped = True

    def run(self) -> None:
        """Fetches; what goes wrong is kept in `failure`."""
        url = self.url
        try:
            for _ in range(REDIRECTS + 1):
                try:
                    self._fetch(url)
                    return
                except _MovedError as moved:
                    url = urljoin(url, str(moved))
            raise GivenUpError(f"it leads from one address to another, the last {url[:200]}")
        except _CompleteError:
            pass
        except Exception as error:  # of requests, urllib3, http.client, ssl …
            self.failure = error

    def _fetch(self, url: str) -> None:
        import pooch

        answers: list[requests.Response] = []

        def on_answer(answer: "requests.Response", *args: object, **kwargs: object) -> None:
            answers.append(answer)
            self._check(answer)

        # A server that compressed once more in transit could not be resumed, hence "identity".
        headers = {"Accept-Encoding": "identity"}
        if self.offset:
            headers["Range"] = f"bytes={self.offset}-"
        # A total is a must, or pooch's question whether there is a bar fails; it is set right by the answer. Where
        # there is none within a second, no bar of one byte stands in front of the message.
        with tqdm(
            desc=self.label, total=1, unit="B", unit_scale=True, leave=False, delay=1.0
        ) as progress:
            fetch_to = pooch.HTTPDownloader(
                progressbar=progress,
                chunk_size=CHUNK,
                timeout=TIMEOUT,
                headers=headers,
                hooks={"response": on_answer},
                # Followed by hand: requests would read the body of a redirect, however long it is.
                allow_redirects=False,
            )
            try:
                fetch_to(url, self, None)
            finally:
                for answer in answers:
                    answer.close()

    def _check(self, answer: "requests.Response") -> None:
        """Looks at the head of an answer before its body is read."""
        if answer.is_redirect:
            raise _MovedError(answer.headers["Location"])
        if answer.status_code == 416 and self.offset:
            raise _CompleteError("complete, or not this file at all")
        if answer.status_code not in (200, 206):
            raise DownloadError(f"the server answered {answer.status_code}")
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise GivenUpError(
                f"the server encodes the file once more (Content-Encoding: {encoding[:50]})"
            )
        start = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range", ""))
        resumed = answer.status_code == 206 and start is not None and int(start[1]) == self.offset
        length = answer.headers.get("Content-Length", "")
        with self.lock:
            if self.stopped:
                raise GivenUpError("it was stopped")
            if not resumed:
                self.part.cut()  # the server sends all of it again
            if re.fullmatch(r"\d{1,18}", length):
                self.expected = self.part.size + int(length)
        if self.expected > self.part.limit:
            raise GivenUpError(
                f"it has {self.expected:,} bytes, more than the {self.part.limit:,} that it can have"
            )


def transfer(url: str, part: Part, label: str) -> DownloadError | None:
    """Appends to the partial file what the server still has.

    Args:
        url: the file.
        part: begun or empty. If the server cannot go on where it ends, it is filled from the start.
        label: for the progress bar.

    Returns:
        What went wrong, if anything; a `GivenUpError` if another attempt would bring nothing.
    """
    attempt = _Transfer(url, part, label)
    thread = threading.Thread(target=attempt.run, daemon=True)
    start = time.monotonic()
    thread.start()
    try:
        while thread.is_alive():
            thread.join(LOOK)
            seconds = time.monotonic() - start
            if thread.is_alive() and attempt.received < (seconds - GRACE) * LEAST_SPEED:
                return GivenUpError(
                    f"it is too slow: {attempt.received:,} bytes in {seconds:.0f} seconds"
                )
    finally:
        attempt.stop()
    if isinstance(attempt.failure, DownloadError):
        return attempt.failure
    if attempt.failure is not None:
        return DownloadError(_short(attempt.failure))
    if part.size < attempt.expected:
        return DownloadError(
            f"the connection ended after {part.size:,} of {attempt.expected:,} bytes"
        )
    return None


def _short(error: Exception) -> str:
    """The innermost reason of a network error, without the library's wrapping."""
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return f"{type(cause).__name__}: {str(cause)[:200]}"
