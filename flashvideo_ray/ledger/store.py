"""Bytes in and out of any fsspec location, without a reader ever seeing half an object."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import threading
import time
import uuid
from collections.abc import Iterator
from functools import cached_property

import fsspec
from fsspec.core import url_to_fs

from flashvideo_ray.errors import InputError, no_file_system
from flashvideo_ray.ledger.clock import Clock

# fsspec's names of the stores whose file systems turn `mode="create"` into a conditional put.
CONDITIONAL_PUT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
SETTLE_SECONDS = 2.0
_OPEN_SECONDS = 30.0
NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS})  # what a mounted bucket or a FAT disk answers


class Store:
    """A folder at an fsspec URL: `runs/demo`, `s3://bucket/run1`, `gs://…`.

    Keys are relative and use `/`. `put` is atomic: object stores make an object visible when its upload is complete, a
    local file is written beside its place and renamed. A store is picklable; each process opens its own connection,
    with credentials from the environment (`AWS_*`) or fsspec's configuration; InputError where nothing here knows its
    protocol. Its `clock` gives the times of rows that
    are written, after those of all rows that were read.
    """

    def __init__(self, url: str, clock: Clock | None = None):
        self.url = url if "://" in url else os.path.abspath(url)
        self.clock = clock or Clock()

    @cached_property
    def _location(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return self._connected()

    def _connected(self, **options: bool) -> tuple[fsspec.AbstractFileSystem, str]:
        if "://" in self.url and not self.url.startswith("file://"):
            # A listing cached by this process would hide what other workers publish.
            options["use_listings_cache"] = False
        try:
            filesystem, root = url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:  # a protocol whose library is not there, or that nobody knows
            raise InputError(no_file_system(self.url, error)) from None
        return filesystem, root.rstrip("/")

    def open(self) -> None:
        """Open this process's connection by a request: no later one waits for libraries, credentials and the like.

        It waits for a store that is away as long as its library does, and leaves it to those who need something of it.
        """
        with contextlib.suppress(Exception):  # each store has its own
            Store.exists(self, "run.json")

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Open it while a model is read, as the first call would have to: with a card that waits.

        One that is away holds nobody up for long: it has the patience of the calls that need it.
        """
        thread = threading.Thread(target=self.open, daemon=True)
        thread.start()
        yield
        thread.join(_OPEN_SECONDS)

    def reconnect(self) -> None:
        """Open the connection anew, with credentials as they are now: a process keeps those that it began with."""
        self.__dict__["_location"] = self._connected(skip_instance_cache=True)

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The fsspec filesystem behind it."""
        return self._location[0]

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine's own file system."""
        return isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)

    def is_same_place(self, other: Store) -> bool:
        """Whether both are one folder, however their URLs are written (relative, through a link, with a slash)."""
        if self.is_local and other.is_local:
            return os.path.realpath(self.path()) == os.path.realpath(other.path())
        same_store = type(self.fs) is type(other.fs) and self.fs.storage_options == other.fs.storage_options
        return same_store and self.path() == other.path()

    def path(self, key: str = "") -> str:
        """The path that the filesystem knows a key by."""
        return posixpath.join(self._location[1], key) if key else self._location[1]

    def put(self, key: str, data: bytes) -> None:
        """Write an object; whoever reads the key sees all of it or what was there before."""
        path = self.path(key)
        self._may_write()
        if not self.is_local:
            self._send(path, data)
            return
        with _written_beside(path, data) as partial:
            self._may_write()
            os.replace(partial, path)

    def _may_write(self) -> None:
        """Called before anything is written, and before it becomes visible. A store that may not write now raises."""

    def _send(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(path, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object where there is none. Returns whether the key now holds the data of this call.

        Of several callers exactly one is told so, provided that their data differ: put a nonce in it. It is exact in a
        local folder (a hard link) and in stores with a conditional put (S3, Google, Azure). Elsewhere it is weaker: the
        data are put if nothing is there and read back `SETTLE_SECONDS` later, so two callers are told so if one of them
        stands still for that long between looking and putting.
        """
        try:
            self._create(key, data)
        except Exception:  # an object in the way is another error in each store
            if not self.exists(key):
                raise
        # What is there decides, not what the write answered: a write whose answer was lost and that was sent again is
        # refused because of itself, and a server that does not know the condition lets everybody write.
        try:
            return self.get(key) == data
        except FileNotFoundError:
            return False

    @property
    def is_exact(self) -> bool:
        """Whether `create` is exact here, as far as the kind of the store tells; see there."""
        return self.is_local or bool(self._protocols & CONDITIONAL_PUT)

    @property
    def _protocols(self) -> set[str]:
        return {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)

    def _create(self, key: str, data: bytes) -> None:
        path = self.path(key)
        self._may_write()
        if self.is_local:
            with _written_beside(path, data) as partial:
                try:
                    return os.link(partial, path)
                except OSError as error:
                    if error.errno not in NO_HARD_LINKS:
                        raise
        if self._protocols & CONDITIONAL_PUT:
            self.fs.pipe_file(path, data, mode="create")
        elif not self.exists(key):
            self.put(key, data)
            time.sleep(SETTLE_SECONDS)

    def get(self, key: str) -> bytes:
        """Read an object; FileNotFoundError if there is none."""
        return self.fs.cat_file(self.path(key))

    def exists(self, key: str) -> bool:
        """Whether an object of this name is there. A store that cannot be asked raises, and is not taken for empty."""
        try:
            return self.fs.info(self.path(key))["type"] == "file"
        except FileNotFoundError:
            return False

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is removed already."""
        self._may_write()
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(key))

    def keys(self, folder: str = "", suffix: str = "") -> list[str]:
        """Keys of all objects below a folder, sorted. An absent folder has none."""
        return sorted(key for key in self.sizes(folder) if key.endswith(suffix))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """All objects below a folder by their keys, with their sizes in bytes. Hidden ones are left out."""
        root = self.path()
        found = self.fs.find(self.path(folder), detail=True)
        sizes = {path.removeprefix(root).lstrip("/"): info["size"] for path, info in found.items()}
        return {key: size for key, size in sizes.items() if not posixpath.basename(key).startswith(".")}

    def __reduce__(self) -> tuple[type[Store], tuple[str, Clock]]:
        return Store, (self.url, self.clock)


@contextlib.contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    """A hidden file with the data in the folder of `path`, to be linked or moved there; gone at the end."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    partial = os.path.join(folder, f".{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
        yield partial
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)
