"""Values to canonical JSON and back, by annotation, through pydantic.

A value becomes *bytes* (canonical JSON: sorted keys, no spaces, no NaN) and a *digest*
(SHA-256 of those bytes, or an HMAC when a cipher is set). Small bodies stay in their event;
larger ones live by digest in a table of their own. Two kinds of parts inside a value are
stored apart, so that a conversation is stored once and not once per call:

* a field annotated ``Annotated[T, Stored()]`` is replaced by the digest of its own body;
* types of the message chain put their nodes into the same `Parts` (see llm.messages).

No type tags, no pickle: the reader's annotation decides what the JSON means.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, PydanticSerializationError, core_schema
from pydantic_core import from_json as _parse_json

from agentflow.dataclass import dataclass
from agentflow.errors import DecodeError, EncodeError, PayloadErased, PayloadTooLargeError

INLINE_BYTES = 256  # larger bodies live by digest in a table of their own
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Payload:
    """One encoded value as an event refers to it.

    Attributes:
        digest: Content address, 32 bytes.
        size_bytes: Length of the canonical JSON.
        type: The declared type, for readers; never used to decode.
        body: Sealed body when it is small, else None (look it up by digest).
        parts: Digests of bodies that were stored apart.
    """

    digest: bytes
    size_bytes: int
    type: str
    body: bytes | None
    parts: tuple[bytes, ...] = ()


class Parts:
    """What encoding a value put aside: for most values nothing, so each table waits for a need.

    Attributes:
        bodies: Sealed bodies by digest.
        nodes: Nodes of the message chain by id.
        on_commit: Called once the store has them.
    """

    __slots__ = ("_bodies", "_nodes", "_on_commit")

    def __init__(
        self,
        bodies: dict[bytes, bytes] | None = None,
        nodes: dict[bytes, MessageNode] | None = None,
        on_commit: list[Callable[[], None]] | None = None,
    ) -> None:
        self._bodies = bodies
        self._nodes = nodes
        self._on_commit = on_commit

    @property
    def bodies(self) -> dict[bytes, bytes]:
        """Sealed bodies by digest."""
        if self._bodies is None:
            self._bodies = {}
        return self._bodies

    @property
    def nodes(self) -> dict[bytes, MessageNode]:
        """Nodes of the message chain by id."""
        if self._nodes is None:
            self._nodes = {}
        return self._nodes

    @property
    def on_commit(self) -> list[Callable[[], None]]:
        """What is called once the store has them."""
        if self._on_commit is None:
            self._on_commit = []
        return self._on_commit

    @property
    def is_empty(self) -> bool:
        """Whether nothing was put aside."""
        return not (self._bodies or self._nodes or self._on_commit)

    def add(self, other: Parts) -> None:
        """Take along what *other* holds."""
        if other._bodies:
            self.bodies.update(other._bodies)
        if other._nodes:
            self.nodes.update(other._nodes)
        if other._on_commit:
            self.on_commit.extend(other._on_commit)

    def __eq__(self, other: object) -> bool:
        """Return whether both hold the same."""
        if not isinstance(other, Parts):
            return NotImplemented
        mine = (self.bodies, self.nodes, self.on_commit)
        return mine == (other.bodies, other.nodes, other.on_commit)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return how much it holds."""
        return f"<Parts: {len(self.bodies)} bodies, {len(self.nodes)} nodes>"


@dataclass(frozen=True, slots=True)
class MessageNode:
    """One message of a conversation, chained to the one before it like a commit in git.

    Attributes:
        id: ``H(parent, digest)``; names the whole conversation up to here.
        parent: The node before, or None for the first message.
        digest: Content address of the message's own body.
    """

    id: bytes
    parent: bytes | None
    digest: bytes


class Bodies(Protocol):
    """Looks bodies and chains up while a value is decoded."""

    def body(self, digest: bytes) -> bytes | None:
        """Return the sealed body of *digest*, or None where it was erased or never stored."""
        ...

    def chain(self, head: bytes, count: int) -> list[tuple[MessageNode, bytes]]:
        """Return the last *count* nodes up to *head*, oldest first, each with its sealed body.

        Raises:
            PayloadErased: a node or a body is missing.
        """
        ...


class NoBodies:
    """Bodies for values that are known to be inline."""

    def body(self, digest: bytes) -> bytes | None:
        """Return None: nothing is stored here."""

    def chain(self, head: bytes, count: int) -> list[tuple[MessageNode, bytes]]:
        """Raise PayloadErased: nothing is stored here."""
        msg = f"{count} messages up to {head.hex()[:12]} are missing"
        raise PayloadErased(msg)


class PartsBodies(NoBodies):
    """Bodies of values that were just encoded and are not stored yet."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def body(self, digest: bytes) -> bytes | None:
        """Return the sealed body of *digest*, if it is among the parts."""
        return self._parts.bodies.get(digest)


class Cipher(Protocol):
    """The hook through which every stored body passes."""

    def digest(self, plain: bytes) -> bytes:
        """Return the 32-byte content address of *plain*."""
        ...

    def seal(self, digest: bytes, plain: bytes) -> bytes:
        """Return what is stored for *plain*."""
        ...

    def open(self, digest: bytes, sealed: bytes) -> bytes:
        """Return the plain bytes of a stored body."""
        ...


_RAW, _DEFLATED = b"\x00", b"\x01"

# What requests and responses have in common, the most frequent last: with it, deflate takes half as
# many bytes for them, and a twentieth less for a message. Never edit it, for stored bodies are read
# with it; a better one gets a leading byte of its own.
_PRIMER = (
    b'{"cost_pico_usd":null,"context":{"speed":"standard","inference_geo":"us"},"finish":"tool_calls",'
    b'"id":"chatcmpl-msg_resp_0","object":"response","created_at":17,"status":"completed",'
    b'"parallel_tool_calls":true,"store":true,"temperature":1.0,"tool_choice":"auto","top_p":1.0,'
    b'"truncation":"disabled","input_tokens_details":{"cached_tokens":0},"output_tokens_details":'
    b'{"reasoning_tokens":0},"total_tokens":0,"content":[],"type":"function_call","call_id":"call_",'
    b'{"parts":[{"arguments":"{\\"","id":"toolu_","name":"","type":"tool_call"}],"role":"assistant"}'
    b'{"parts":[{"call_id":"call_","content":"","is_error":false,"name":"","type":"tool_result"}],'
    b'{"context":{},"cost_pico_usd":0,"finish":"stop","message":"","model":"anthropic:claude-openai:'
    b'gpt-","raw":{"id":"resp_","model":"","usage":{"input_tokens":0,"output_tokens":0}},"request_id":'
    b'"req_","response_id":"resp_","service_tier":"default","usage":{"cache_read_tokens":0,'
    b'"cache_write_12h_tokens":0,"cache_write_1h_tokens":0,"cache_write_tokens":0,"input_audio_tokens"'
    b':0,"input_tokens":0,"iterations":[],"output_audio_tokens":0,"output_tokens":0,"reasoning_tokens"'
    b':0,"unknown":{},"web_fetch_count":0,"web_search_count":0}}'
    b'{"request":{"instructions":"","messages":{"spans":[["",1]]},"model":"","output":null,"settings":'
    b'"","tool_choice":"auto","tools":[]}}{"parts":[{"text":"","type":"text"}],"role":"assistant"}'
    b'"type":"text"}],"role":"user"}{"parts":[{"text":"'
)


def squeeze(plain: bytes) -> bytes:
    """Return *plain* with one leading byte that says whether it was compressed."""
    if len(plain) > INLINE_BYTES:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS, zdict=_PRIMER)
        packed = packer.compress(plain) + packer.flush()
        if len(packed) < len(plain):
            return _DEFLATED + packed
    return _RAW + plain


def unsqueeze(stored: bytes) -> bytes:
    """Return the bytes that `squeeze` was given."""
    if stored[:1] != _DEFLATED:
        return stored[1:]
    reader = zlib.decompressobj(wbits=-zlib.MAX_WBITS, zdict=_PRIMER)
    plain = reader.decompress(stored[1:])
    if not reader.eof:
        raise zlib.error("the compressed body ends too early")
    return plain


class PlainCipher:
    """No encryption: SHA-256 and zlib."""

    def digest(self, plain: bytes) -> bytes:
        """Return SHA-256 of *plain*."""
        return hashlib.sha256(plain).digest()

    def seal(self, digest: bytes, plain: bytes) -> bytes:  # noqa: ARG002 -- the hook's shape
        """Return *plain*, compressed where that helps."""
        return squeeze(plain)

    def open(self, digest: bytes, sealed: bytes) -> bytes:  # noqa: ARG002 -- the hook's shape
        """Return the plain bytes."""
        return unsqueeze(sealed)


@dataclass(frozen=True, slots=True)
class Encoding:
    """The pydantic context while a value is written."""

    codec: Codec
    parts: Parts
    digests: list[bytes]


@dataclass(frozen=True, slots=True)
class Decoding:
    """The pydantic context while a value is read.

    Attributes:
        is_kept: Whether what it refers to stays in the store as long as the reader needs it: a run
            that is alive refers to it too. The result of a run that ended may be pruned.
    """

    codec: Codec
    bodies: Bodies
    is_kept: bool = True


_AS_SHORT_AS_A_DIGEST = 2 * DIGEST_BYTES + 2  # its hexadecimal digits between quotes


class Stored:
    """Marks a field whose body is stored apart, by digest: ``Annotated[Message, Stored()]``.

    A value that is as short as a digest, and no text that could be taken for one, stays in place.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Wrap the field's schema so that inside a codec only the digest is written."""
        inner = handler(source)

        def dump(value: Any, nxt: Callable[[Any], Any], info: Any) -> Any:
            plain = nxt(value)
            if not isinstance(info.context, Encoding):
                return plain
            body = canonical(plain)
            if len(body) <= _AS_SHORT_AS_A_DIGEST and not isinstance(plain, str):
                return plain
            return info.context.codec.put(body, info.context).hex()

        def load(value: Any, nxt: Callable[[Any], Any], info: Any) -> Any:
            if isinstance(info.context, Decoding) and isinstance(value, str):
                value = json.loads(info.context.codec.get(bytes.fromhex(value), info.context))
            return nxt(value)

        return core_schema.with_info_wrap_validator_function(
            load,
            inner,
            serialization=core_schema.wrap_serializer_function_ser_schema(
                dump, info_arg=True, schema=inner
            ),
        )


def text_encoder(encoder: json.JSONEncoder) -> Callable[[Any], str]:
    """Return *encoder*'s `encode`, three times as fast for small values.

    The standard library builds its C encoder anew at every call; here it is built once (and does
    without the look for circular references: the recursion limit finds those).
    """
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without the accelerator
        return encoder.encode
    ascii_only = encoder.ensure_ascii
    quote = json.encoder.encode_basestring_ascii if ascii_only else json.encoder.encode_basestring
    chunks = make(
        None, encoder.default, quote, None, encoder.key_separator, encoder.item_separator,
        encoder.sort_keys, encoder.skipkeys, encoder.allow_nan,
    )  # fmt: skip
    join = "".join
    return lambda value: join(chunks(value, 0))


_canonical_text = text_encoder(
    json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
)


def canonical(value: Any) -> bytes:
    """Return JSON data as canonical bytes: sorted keys, no spaces, UTF-8, no NaN.

    >>> canonical({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    return _canonical_text(value).encode()


class Codec:
    """Encodes and decodes values for one project.

    Args:
        cipher: Digests and seals bodies; the default stores them in clear.
        secrets: Known secret values by name; each is replaced by its name before writing.
        max_bytes: Largest canonical JSON of one value, in bytes.
    """

    def __init__(
        self,
        cipher: Cipher | None = None,
        *,
        secrets: Mapping[str, str] | None = None,
        max_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        self.cipher: Cipher = cipher or PlainCipher()
        self.max_bytes = max_bytes
        self._secrets = [
            (json.dumps(v, ensure_ascii=False)[1:-1].encode(), f"[secret {k}]".encode())
            for k, v in (secrets or {}).items()
            if len(v) >= 8  # noqa: PLR2004 -- shorter strings would erase ordinary words
        ]

    def encode(
        self, value: Any, annotation: Any, parts: Parts, *, what: str, bounded: bool = True
    ) -> Payload:
        """Return *value* as a payload; bodies that live apart go into *parts*.

        Raises:
            EncodeError: a value has no JSON form; the message has its path.
            PayloadTooLargeError: the JSON is longer than `max_bytes`.
        """
        declared = type_name(annotation)
        if is_plain(value, annotation):
            plain = to_canonical(value, value, what)
            return self._payload(plain, declared, parts, (), what, bounded=bounded)
        context = Encoding(self, parts, [])
        plain = to_canonical(to_json(value, annotation, what, context), value, what)
        return self._payload(plain, declared, parts, context.digests, what, bounded=bounded)

    def encode_and_read(
        self, value: Any, annotation: Any, parts: Parts, bodies: Bodies, *, what: str
    ) -> tuple[Payload, Any]:
        """Return *value* as a payload, and as everybody will read it from there.

        Raises:
            EncodeError, PayloadTooLargeError: as `encode`.
            DecodeError: what was written does not fit *annotation*.
        """
        payload = self.encode(value, annotation, parts, what=what)
        if not self._secrets and is_plain(value, annotation):
            return payload, value
        return payload, self.decode(payload, annotation, bodies, what=what)

    def encode_fields(
        self, values: Mapping[str, Any], annotations: Mapping[str, Any], parts: Parts, *, what: str
    ) -> Payload:
        """Return named values, each written by its own annotation, as one JSON object."""
        context: Encoding | None = None
        data: dict[str, Any] = {}
        for name, value in values.items():
            annotation = annotations.get(name, Any)
            if is_plain(value, annotation):
                data[name] = value
                continue
            context = context or Encoding(self, parts, [])
            data[name] = to_json(value, annotation, f"{what} {name}", context)
        digests = context.digests if context is not None else ()
        return self._payload(to_canonical(data, values, what), "object", parts, digests, what)

    def decode_fields(
        self, payload: Payload, annotations: Mapping[str, Any], bodies: Bodies, *, what: str
    ) -> dict[str, Any]:
        """Return the named values that `encode_fields` wrote."""
        data: dict[str, Any] = parsed(self.plain(payload, bodies))
        context: Decoding | None = None
        for name, item in data.items():
            annotation = annotations.get(name, Any)
            if not is_plain(item, annotation):
                context = context or Decoding(self, bodies)
                data[name] = from_json(item, annotation, f"{what} {name}", context)
        return data

    def _payload(
        self,
        plain: bytes,
        declared: str,
        parts: Parts,
        digests: Sequence[bytes],
        what: str,
        *,
        bounded: bool = True,
    ) -> Payload:
        if self._secrets:
            plain = self.scrub(plain)
        size = len(plain)
        if bounded and size > self.max_bytes:
            msg = f"{what} is {size:,} bytes of JSON; the limit is {self.max_bytes:,}"
            raise PayloadTooLargeError(msg)
        digest = self.cipher.digest(plain)
        sealed: bytes | None = self.cipher.seal(digest, plain)
        if size > INLINE_BYTES:
            parts.bodies[digest] = sealed or b""
            sealed = None
        return Payload(digest, size, declared, sealed, tuple(digests))

    def put(self, plain: bytes, context: Encoding) -> bytes:
        """Store *plain* apart and return its digest."""
        plain = self.scrub(plain)
        digest = self.cipher.digest(plain)
        context.parts.bodies[digest] = self.cipher.seal(digest, plain)
        context.digests.append(digest)
        return digest

    def get(self, digest: bytes, context: Decoding) -> bytes:
        """Return the plain bytes of a body that was stored apart."""
        sealed = context.bodies.body(digest)
        if sealed is None:
            msg = f"the body {digest.hex()[:12]} was erased or is missing"
            raise PayloadErased(msg)
        return self.cipher.open(digest, sealed)

    def plain(self, payload: Payload, bodies: Bodies) -> bytes:
        """Return the canonical JSON of *payload*."""
        if payload.body is not None:
            return self.cipher.open(payload.digest, payload.body)
        return self.get(payload.digest, Decoding(self, bodies))

    def decode(
        self,
        payload: Payload,
        annotation: Any,
        bodies: Bodies,
        *,
        what: str,
        is_kept: bool = True,
    ) -> Any:
        """Return the value of *payload* as *annotation*; see `Decoding` for *is_kept*.

        Raises:
            DecodeError: the JSON does not fit the annotation.
            PayloadErased: the body is gone.
        """
        data = parsed(self.plain(payload, bodies))
        if is_plain(data, annotation):
            return data
        return from_json(data, annotation, what, Decoding(self, bodies, is_kept))

    def scrub(self, plain: bytes) -> bytes:
        """Return *plain* with every known secret value replaced by its name."""
        for secret, name in self._secrets:
            if secret in plain:
                plain = plain.replace(secret, name)
        return plain


# Where a type says Any, pydantic would write infinity as null: an unknown number as a known one.
_CONFIG = ConfigDict(ser_json_inf_nan="constants")


def _make_adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=_CONFIG)
    except PydanticUserError:  # models and dataclasses have a configuration of their own
        return TypeAdapter(annotation)


_cached_adapter = lru_cache(maxsize=4096)(_make_adapter)


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return the pydantic adapter of *annotation*, made once."""
    try:
        return _cached_adapter(annotation)
    except TypeError:  # an annotation that cannot be hashed, such as Annotated[int, []]
        return _make_adapter(annotation)


def to_canonical(data: Any, value: Any, what: str) -> bytes:
    """Return JSON *data* as canonical bytes; *value* is what it was made from.

    Raises:
        EncodeError: a float is NaN or infinite, or a string is not Unicode text.
    """
    try:
        return canonical(data)
    except (ValueError, TypeError, RecursionError) as e:
        path, bad = find_unserialisable(value)
        msg = f"{what}{path} is {bad!r:.80}, which has no JSON form"
        raise EncodeError(msg, data={"path": f"{what}{path}"}) from e


_PLAIN = frozenset({str, int, float, bool, type(None)})


def is_plain(value: Any, annotation: Any) -> bool:
    """Return whether *value* is JSON data already, and is read back as it is."""
    kind = type(value)
    return kind in _PLAIN and (annotation is kind or annotation is Any)


def parsed(plain: bytes) -> Any:
    """Return the data of canonical JSON; four times as fast as `json.loads`.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return _parse_json(plain)
    except ValueError:  # nested deeper than pydantic's parser goes, or really no JSON
        return json.loads(plain.decode())


def to_json(value: Any, annotation: Any, what: str, context: Any = None) -> Any:
    """Return *value* as JSON data, as *annotation* says it is written.

    Raises:
        EncodeError: with the path of the part that has no JSON form.
    """
    if is_plain(value, annotation):
        return value
    try:
        data = adapter(annotation).dump_python(
            value, mode="json", context=context, warnings="error", by_alias=True
        )
    except (
        PydanticSerializationError,
        PydanticUserError,
        ValueError,
        TypeError,
        RecursionError,
    ) as e:
        path, bad = find_unserialisable(value)
        name = f"{what}{path}"
        if bad is None:
            lines = [line.strip() for line in str(e).splitlines() if "warnings:" not in line]
            first = " ".join(lines[:2]) or type(e).__name__
            msg = f"{what} does not fit {type_name(annotation)}: {first}"
        else:
            kind = type(bad).__qualname__
            article = "an" if kind[:1].lower() in "aeiou" else "a"
            msg = f"{name} is {article} {kind}, which has no JSON form"
        raise EncodeError(msg, data={"path": name}) from e
    return data


def from_json(data: Any, annotation: Any, what: str, context: Any = None) -> Any:
    """Return JSON *data* as *annotation*.

    Raises:
        DecodeError: it does not fit; the message has the first misfit and its path.
    """
    if annotation is Any or is_plain(data, annotation):
        return data
    try:
        return adapter(annotation).validate_python(
            data, context=context, by_alias=True, by_name=True
        )
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        path = "".join(f"[{part!r}]" for part in first["loc"])
        msg = f"{what}{path} does not fit {type_name(annotation)}: {first['msg']}"
        raise DecodeError(msg, data={"path": path}) from e


def find_unserialisable(value: Any, path: str = "", depth: int = 0) -> tuple[str, Any]:
    """Return (path, value) of the first part with no JSON form, or ("", None)."""
    if depth > 20 or value is None:  # noqa: PLR2004 -- deeper than any sensible value
        return "", None
    for name, item in _parts_of(value):
        found, bad = find_unserialisable(item, f"{path}{name}", depth + 1)
        if bad is not None:
            return found, bad
    try:
        canonical(adapter(Any).dump_python(value, mode="json"))
    except Exception:  # noqa: BLE001 -- any failure means "this has no JSON form"
        return path, value
    return "", None


def _parts_of(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{k!r}]", v) for k, v in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, BaseModel):
        return [(f".{name}", getattr(value, name, None)) for name in type(value).model_fields]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    return ()


def type_name(annotation: Any) -> str:
    """Return a readable name of *annotation*.

    >>> type_name(list[int]), type_name(str), type_name(Any)
    ('list[int]', 'str', 'Any')
    """
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__qualname__
    return str(annotation).replace("typing.", "")
