"""Vendor-neutral messages, and a conversation that is stored once.

A `Messages` value is immutable and shares its past with every value it was made from. Inside
an event it is written as spans of the message chain (`[head id, count]`), so that a call's
request costs one row per *new* message, also with sliding windows and compaction.
"""

from __future__ import annotations

import hashlib
import json
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Self, overload

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from agentflow.codec import Codec, Decoding, Encoding, MessageNode, adapter, canonical
from agentflow.dataclass import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """Text.

    Attributes:
        text: What is said.
        type: Tells the parts apart.
    """

    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image: either base64 `data` with its `media_type`, or a `url`.

    Attributes:
        media_type: For example ``image/png``.
        data: The image, base64.
        url: Where the vendor finds it instead.
        type: The word by which parts are told apart.
    """

    media_type: str = "image/png"
    data: str | None = None
    url: str | None = None
    type: Literal["image"] = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallPart:
    """The model asks for a tool; `arguments` is JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str
    type: Literal["tool_call"] = "tool_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResultPart:
    """What a tool answered, as text (JSON where the tool returned data)."""

    call_id: str
    name: str
    content: str
    is_error: bool = False
    type: Literal["tool_result"] = "tool_result"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPart:
    """A vendor's reasoning item, carried back unchanged (`raw`) over the turns."""

    provider: str
    raw: dict[str, Any]
    text: str = ""
    type: Literal["reasoning"] = "reasoning"


Part = TextPart | ImagePart | ToolCallPart | ToolResultPart | ReasoningPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation; tool results travel in `user` messages.

    Attributes:
        role: Who speaks. Instructions are no message: a request has them beside.
        parts: What is said, in order.
    """

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(p.text for p in self.parts if isinstance(p, TextPart))

    @property
    def tool_calls(self) -> tuple[ToolCallPart, ...]:
        """The tool calls that the message asks for."""
        return tuple(p for p in self.parts if isinstance(p, ToolCallPart))

    @property
    def tool_results(self) -> tuple[ToolResultPart, ...]:
        """The tool results that the message brings."""
        return tuple(p for p in self.parts if isinstance(p, ToolResultPart))


def user(*parts: str | Part) -> Message:
    """Return a user message.

    Args:
        *parts: What it says; strings become text parts.

    Returns:
        The message.
    """
    return Message(role="user", parts=_parts(parts))


def assistant(*parts: str | Part) -> Message:
    """Return an assistant message.

    Args:
        *parts: What it says; strings become text parts.

    Returns:
        The message.
    """
    return Message(role="assistant", parts=_parts(parts))


def _parts(parts: Iterable[str | Part]) -> tuple[Part, ...]:
    return tuple(TextPart(text=p) if isinstance(p, str) else p for p in parts)


# A message that was written is not written again for so long; after that it might have been pruned
# with the run that had it (storage/prune.py).
STORED_SECONDS = 600.0


class _Link:
    """One message and its past; seldom written more than once per codec (that is, per store)."""

    __slots__ = (
        "__weakref__", "_codec", "depth", "message", "node", "parent", "sealed", "stored_until",
    )  # fmt: skip

    def __init__(self, parent: _Link | None, message: Message) -> None:
        self.parent = parent
        self.message = message
        self.depth: int = parent.depth + 1 if parent else 1
        self._codec: Codec | None = None
        self.node: MessageNode | None = None
        self.sealed = b""
        self.stored_until = 0.0

    def known(self, codec: Codec) -> MessageNode | None:
        """Return the node under *codec*, if it was made."""
        return self.node if self._codec is codec else None

    def make(self, codec: Codec, parent: MessageNode | None) -> MessageNode:
        """Return the node under *codec*; the parent's must exist."""
        plain = codec.scrub(canonical(adapter(Message).dump_python(self.message, mode="json")))
        digest = codec.cipher.digest(plain)
        self.sealed = codec.cipher.seal(digest, plain)
        return self.adopt(codec, node_of(parent.id if parent else None, digest), 0.0)

    def adopt(self, codec: Codec, node: MessageNode, stored_until: float) -> MessageNode:
        """Remember *node* as this link's, which the store is sure to have until a time."""
        self._codec, self.node, self.stored_until = codec, node, stored_until
        _links(codec)[node.id] = self
        return node


def node_of(parent: bytes | None, digest: bytes) -> MessageNode:
    """Return the chain node of a message: its id is ``SHA-256(parent ‖ digest)``."""
    return MessageNode(hashlib.sha256((parent or bytes(32)) + digest).digest(), parent, digest)


_LINKS: weakref.WeakKeyDictionary[Codec, weakref.WeakValueDictionary[bytes, _Link]] = (
    weakref.WeakKeyDictionary()
)


def _links(codec: Codec) -> weakref.WeakValueDictionary[bytes, _Link]:
    found = _LINKS.get(codec)
    if found is None:
        found = _LINKS[codec] = weakref.WeakValueDictionary()
    return found


class Messages:
    """An immutable conversation: a sequence of `Message`.

    Args:
        messages: The messages, oldest first.

    >>> chat = Messages([user("hi")])
    >>> longer = chat.append(assistant("hello"))
    >>> len(chat), len(longer), longer[-1].text
    (1, 2, 'hello')
    """

    __slots__ = ("_spans",)

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        head: _Link | None = None
        for message in messages:
            head = _Link(head, message)
        self._spans: tuple[tuple[_Link, int], ...] = ((head, head.depth),) if head else ()

    @classmethod
    def _of(cls, spans: tuple[tuple[_Link, int], ...]) -> Self:
        made = cls()
        made._spans = tuple(s for s in spans if s[1])
        return made

    def append(self, *messages: Message) -> Self:
        """Return a conversation with *messages* after this one's; nothing is copied.

        Args:
            *messages: What was said next.

        Returns:
            A conversation that shares its past with this one.
        """
        if not self._spans:
            return type(self)(messages)
        head, count = self._spans[-1]
        for message in messages:
            head, count = _Link(head, message), count + 1
        return self._of((*self._spans[:-1], (head, count)))

    def last(self, count: int) -> Self:
        """Return the last *count* messages (a sliding window); nothing is copied.

        Args:
            count: Number of messages that are kept.

        Returns:
            A conversation that shares its messages with this one.
        """
        kept: list[tuple[_Link, int]] = []
        for head, length in reversed(self._spans):
            take = min(length, count)
            kept.append((head, take))
            count -= take
        return self._of(tuple(reversed(kept)))

    def between(self, start: int, stop: int) -> Self:
        """Return the messages from *start* up to *stop*, as a slice would; nothing is copied.

        Args:
            start: Number of messages that are left out before; less than 0 is 0.
            stop: Number of the message that is the first one left out behind.

        Returns:
            A conversation that shares its messages with this one.
        """
        kept: list[tuple[_Link, int]] = []
        for head, length in self._spans:
            first, end = max(start, 0), min(stop, length)
            if first < end:
                link = head
                for _ in range(length - end):
                    assert link.parent is not None  # noqa: S101 -- a span has all its messages
                    link = link.parent
                kept.append((link, end - first))
            start, stop = start - length, stop - length
        return self._of(tuple(kept))

    def after(self, prefix: Iterable[Message]) -> Self:
        """Return *prefix* followed by this conversation (compaction keeps a tail this way).

        Args:
            prefix: What comes first, such as a summary.

        Returns:
            A conversation that shares its tail with this one.
        """
        before = prefix if isinstance(prefix, Messages) else type(self)(prefix)
        return self._of((*before._spans, *self._spans))  # noqa: SLF001 -- own class

    def __iter__(self) -> Iterator[Message]:
        """Yield the messages, oldest first."""
        for head, count in self._spans:
            links: list[_Link] = []
            link: _Link | None = head
            while link is not None and len(links) < count:
                links.append(link)
                link = link.parent
            yield from (one.message for one in reversed(links))

    def __reversed__(self) -> Iterator[Message]:
        """Yield the messages, newest first, each when it is asked for."""
        for head, count in reversed(self._spans):
            link: _Link | None = head
            for _ in range(count):
                assert link is not None  # noqa: S101 -- a span has all its messages
                yield link.message
                link = link.parent

    def __len__(self) -> int:
        """Return the number of messages."""
        return sum(count for _, count in self._spans)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Message, ...]: ...
    def __getitem__(self, index: int | slice) -> Message | tuple[Message, ...]:
        """Return one message, or a tuple of them for a slice."""
        if index == -1 and self._spans:
            return self._spans[-1][0].message
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        """Return whether both hold equal messages."""
        return isinstance(other, Messages) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        """Return a hash of the messages."""
        return hash(tuple(repr(m) for m in self))

    def __repr__(self) -> str:
        """Return the messages as a list."""
        return f"Messages({list(self)!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Write spans inside a codec, a plain list of messages elsewhere."""
        return core_schema.with_info_plain_validator_function(
            _load,
            serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True),
            json_schema_input_schema=handler(list[Message]),
        )

    def spans(self, context: Encoding) -> list[list[Any]]:
        """Return what stands for the conversation inside a payload; new nodes go into the parts.

        Args:
            context: The encoding under way.

        Returns:
            ``[[head id as hex, count], …]``.
        """
        return [[_write(head, context).id.hex(), count] for head, count in self._spans]


def _write(head: _Link, context: Encoding) -> MessageNode:
    codec, parts = context.codec, context.parts
    fresh: list[_Link] = []
    now = time.monotonic()
    link: _Link | None = head
    while link is not None and not (link.known(codec) and link.stored_until > now):
        fresh.append(link)
        link = link.parent
    node = link.known(codec) if link else None
    for one in reversed(fresh):
        known = one.known(codec) if one.sealed else None
        node = known or one.make(codec, node)
        parts.nodes[node.id] = node
        parts.bodies[node.digest] = one.sealed
        parts.on_commit.append(_marker(one))
    if node is None:
        node = head.make(codec, None)
    return node


def _marker(link: _Link) -> Callable[[], None]:
    def mark() -> None:
        link.stored_until = time.monotonic() + STORED_SECONDS
        link.sealed = b""

    return mark


def _dump(value: Messages, info: core_schema.SerializationInfo) -> Any:
    if isinstance(info.context, Encoding):
        return {"spans": value.spans(info.context)}
    return adapter(list[Message]).dump_python(list(value), mode="json")


def _load(value: Any, info: core_schema.ValidationInfo) -> Messages:
    if isinstance(value, Messages):
        return value
    if isinstance(info.context, Decoding) and isinstance(value, dict):
        spans = [(bytes.fromhex(head), count) for head, count in value["spans"]]
        made = tuple((_read(head, count, info.context), count) for head, count in spans)
        return Messages._of(made)  # noqa: SLF001 -- the class's own reader
    return Messages(adapter(list[Message]).validate_python(value))


def _read(head: bytes, count: int, context: Decoding) -> _Link:
    """Return the link of *head*, with at least *count* messages reachable from it."""
    codec = context.codec
    known = _links(codec)
    stored_until = time.monotonic() + STORED_SECONDS if context.is_kept else 0.0
    found = known.get(head)
    if found is not None and found.depth >= count:
        return found
    link: _Link | None = None
    for node, sealed in context.bodies.chain(head, count):
        before = known.get(node.id)
        if before is not None and before.depth > (link.depth if link else 0):
            link = before
            continue
        plain = codec.cipher.open(node.digest, sealed)
        made = _Link(link, adapter(Message).validate_python(json.loads(plain)))
        made.adopt(codec, node, stored_until)
        link = made
    assert link is not None  # noqa: S101 -- chain() raises where nodes are missing
    return link
