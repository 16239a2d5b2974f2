"""rosbag2 bags as files: read with clear errors, written so that half a bag never looks whole.

No ROS is needed: messages are the Python types of rosbags, and the package's own are registered
from its ``.msg`` files.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cosmos3_ros.resources import resource

METADATA = "metadata.yaml"
SUFFIXES = (".mcap", ".db3")
# Version of rosbag2's metadata that ROS 2 Jazzy writes.
BAG_VERSION: Literal[9] = 9


class BagError(ValueError):
    """A bag cannot be read, or lacks what is needed of it."""


@dataclass(frozen=True)
class Message:
    """One message of a bag: ``log_ns`` is when it was recorded, ``raw`` its CDR bytes."""

    topic: str
    type: str
    log_ns: int
    raw: bytes

    @property
    def stamp_ns(self) -> int:
        """Stamp of a message that begins with a header, without decoding the rest."""
        seconds, nanoseconds = struct.unpack_from("<iI" if self.raw[1] else ">iI", self.raw, 4)
        return int(seconds) * 1_000_000_000 + int(nanoseconds)

    def decoded(self) -> Any:
        """The message itself. Raises BagError where the bytes are not of its type."""
        try:
            return typestore().deserialize_cdr(self.raw, self.type)
        except Exception as error:
            raise BagError(
                f"topic '{self.topic}': {len(self.raw)} bytes are not a {self.type} as it is known "
                f"here ({error}); record it again, or use the version that wrote it"
            ) from error


@dataclass(frozen=True)
class Topic:
    """What a bag says about a topic."""

    type: str
    count: int
    transient_local: bool


@cache
def typestore() -> Typestore:
    """The messages of ROS 2 Jazzy, and our own."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in sorted(resource("msg").glob("*.msg")):
        store.register(get_types_from_msg(path.read_text(), f"cosmos3_ros/msg/{path.stem}"))
    return store


def message_class(name: str) -> Any:
    """The Python type of a message such as ``sensor_msgs/msg/Image``; takes its fields in order."""
    return typestore().types[name]


def encode(message: Any) -> bytes:
    """CDR bytes of a message made of a ``message_class``."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__))


class Bag:
    """An open bag; see ``open_bag``."""

    def __init__(self, path: Path, reader: Reader) -> None:
        self.path = path
        self._reader = reader
        self.topics: dict[str, Topic] = {}
        for connection in reader.connections:
            # A topic has a connection for each of its publishers.
            known = self.topics.get(connection.topic, Topic(connection.msgtype, 0, False))
            self.topics[connection.topic] = Topic(
                known.type,
                known.count + connection.msgcount,
                known.transient_local or _is_transient_local(connection),
            )

    @property
    def start_ns(self) -> int:
        """Log time of the first message."""
        return self._reader.start_time

    @property
    def end_ns(self) -> int:
        """Log time of the last message."""
        return self._reader.end_time - 1

    def named(self, name: str) -> list[str]:
        """Topics that are ``name`` in any namespace: ``/joint_states``, ``/left/joint_states``."""
        return sorted(t for t in self.topics if t.strip("/") == name or t.endswith(f"/{name}"))

    def typed(self, msgtype: str) -> list[str]:
        """Topics of a message type, whatever they are called."""
        return sorted(t for t, about in self.topics.items() if about.type == msgtype)

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Messages of these topics in the order of their log time."""
        wanted = [c for c in self._reader.connections if c.topic in topics]
        if not wanted:
            return
        stored = self._reader.messages(wanted)
        while True:
            try:
                connection, log_ns, raw = next(stored)
            except StopIteration:
                return
            except Exception as error:
                raise _unreadable(self.path, error) from error
            yield Message(connection.topic, connection.msgtype, log_ns, raw)


@contextmanager
def open_bag(path: Path) -> Iterator[Bag]:
    """Open a bag: a folder with ``metadata.yaml``, or one ``.mcap`` or ``.db3`` file.

    Raises BagError that says what the path is, and what a bag is.
    """
    _require_bag(path)
    reader = Reader(path)
    try:
        reader.open()
    except Exception as error:
        raise _unreadable(path, error) from error
    try:
        yield Bag(path, reader)
    finally:
        reader.close()


class BagWriter:
    """Writes ``OUT.mcap``, one file that ``ros2 bag info`` and ``ros2 bag play`` take.

    The file appears under its name when it is complete. Until then it lies in a hidden folder
    beside it, which goes away when the writing fails. Not thread-safe.
    """

    def __init__(
        self, path: Path, topics: Mapping[str, str], transient_local: Collection[str] = ()
    ) -> None:
        """``topics``: message types by topic. A player that honours QoS offers all of them
        reliable, those in ``transient_local`` so.

        Raises BagError for a name that is not ``*.mcap`` and for unknown types, OSError where
        nothing can be written.
        """
        if path.suffix != ".mcap":
            raise BagError(f"'{path}' is no name for a bag that is written; expected a *.mcap file")
        unknown = [kind for kind in topics.values() if kind not in typestore().types]
        if unknown:
            raise BagError(
                f"bag '{path}' cannot hold {', '.join(unknown)}; expected types of ROS 2 Jazzy's "
                "common interfaces, or this package's"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.counts = dict.fromkeys(topics, 0)
        self._folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
        # rosbags writes a folder NAME with NAME.mcap in it, and notes that file's name inside it.
        self._writer = Writer(
            self._folder / path.stem, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP
        )
        self._writer.open()
        self._connections = {
            topic: self._writer.add_connection(
                topic,
                kind,
                typestore=typestore(),
                offered_qos_profiles=[_qos(topic in transient_local)],
            )
            for topic, kind in topics.items()
        }

    def write(self, topic: str, log_ns: int, raw: bytes) -> None:
        """Write CDR bytes to one of the topics."""
        self._writer.write(self._connections[topic], log_ns, raw)
        self.counts[topic] += 1

    def close(self) -> None:
        """Finish the file and give it its name; a file of that name is replaced."""
        try:
            self._writer.close()
            written = self._folder / self.path.stem / self.path.name
            with written.open("rb") as stream:
                os.fsync(stream.fileno())
            written.replace(self.path)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def abort(self) -> None:
        """Throw away what was written."""
        # Where the disk is full, what is still in its buffer cannot be written either.
        with suppress(OSError):
            self._writer.abort()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _require_bag(path: Path) -> None:
    expected = f"expected a rosbag2 folder with {METADATA}, or a {' or '.join(SUFFIXES)} file"
    if not path.exists():
        raise BagError(f"bag '{path}' does not exist; {expected}")
    if path.is_dir() and not (path / METADATA).is_file():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        hint = f"name the file itself: {path / inside[0]}" if inside else expected
        raise BagError(f"folder '{path}' is no bag, it has no {METADATA}; {hint}")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise BagError(f"file '{path}' is no bag; {expected}")


def _unreadable(path: Path, error: Exception) -> BagError:
    return BagError(
        f"bag '{path}' cannot be read: {str(error) or type(error).__name__}; it is damaged or was "
        "cut short: record it again, or try 'mcap recover'"
    )


def _is_transient_local(connection: Connection) -> bool:
    profiles = getattr(connection.ext, "offered_qos_profiles", ())
    return any(qos.durability is QosDurability.TRANSIENT_LOCAL for qos in profiles)


def _qos(transient_local: bool) -> Qos:
    unlimited = QosTime(0, 0)
    durability = QosDurability.TRANSIENT_LOCAL if transient_local else QosDurability.VOLATILE
    return Qos(
        QosHistory.KEEP_LAST,
        10,
        QosReliability.RELIABLE,
        durability,
        unlimited,
        unlimited,
        QosLiveliness.AUTOMATIC,
        unlimited,
        False,
    )
