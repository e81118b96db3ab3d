"""Hypothesis strategies for messages of the API, made from their descriptors: a new field is fuzzed without a line."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Words = Mapping[str, SearchStrategy[Any]]
"""Values that lead somewhere, such as a model that exists, by the name of the field or message type that takes them."""

#: Messages within messages.
_DEPTH = 6

#: Lengths of texts and lists beyond what anybody needs: around the bounds, and far past them.
_LENGTHS = (129, 1_025, 9_000, 150_001)
_LONG_TEXTS = st.builds(
    lambda part, length: (part * length)[:length],
    st.sampled_from(["x", "a-b ", "\x1b[2J", "é", "9"]),
    st.sampled_from([*_LENGTHS, 4_000_000]),
)

#: Where a double loses whole numbers, where a counter of Redis ends, and what the first overflows were.
_EDGES = (2**53 - 1, 2**53 + 1, 10**17, 10**18, 2**63 - 1)

_SCALARS: Mapping[int, SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.sampled_from(_EDGES),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 64) | st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 64) | st.integers(0, 2**64 - 1) | st.sampled_from(_EDGES),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(0, 1) | st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(0, 1, width=32) | st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def messages(kind: type[Message], words: Words, depth: int = _DEPTH) -> SearchStrategy[Message]:
    """Returns messages with some of their fields set, to values that may make no sense."""
    fields = [field for field in kind.DESCRIPTOR.fields if depth or field.message_type is None]

    @st.composite
    def drawn(draw: st.DrawFn) -> Message:
        message = kind()
        for field in draw(st.lists(st.sampled_from(fields), unique=True)) if fields else ():
            _set(message, field, draw(_values(field, words, depth)))
        return message

    return drawn()


def nearly(valid: Message, words: Words) -> SearchStrategy[Message]:
    """Returns a valid message with one of its fields, at any depth, left out or set to anything."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Message:
        whole = type(valid)()
        whole.CopyFrom(valid)
        part = whole
        while True:
            field = draw(st.sampled_from(list(part.DESCRIPTOR.fields)))
            within = field.message_type is not None and not field.is_repeated and part.HasField(field.name)
            if not (within and field.message_type.fields and draw(st.booleans())):
                break
            part = getattr(part, field.name)
        part.ClearField(field.name)
        if draw(st.booleans()):
            _set(part, field, draw(_values(field, words, _DEPTH)))
        return whole

    return drawn()


def _values(field: FieldDescriptor, words: Words, depth: int) -> SearchStrategy[Any]:
    if _is_map(field):
        value = field.message_type.fields_by_name["value"]
        return st.dictionaries(_value(field.message_type.fields_by_name["key"], words, 0), _value(value, words, depth))
    return _lists(_value(field, words, depth)) if field.is_repeated else _value(field, words, depth)


def _lists(value: SearchStrategy[Any]) -> SearchStrategy[list[Any]]:
    """Returns short lists, and now and then one value very often."""
    short = st.lists(value, max_size=3)
    return st.one_of(short, short, short, st.builds(_repeated, value, st.sampled_from(_LENGTHS)))


def _repeated(value: Any, times: int) -> list[Any]:
    size = value.ByteSize() if isinstance(value, Message) else len(value) if isinstance(value, (str, bytes)) else 8
    return [value] * min(times, 2**22 // (size + 1) + 1)


def _value(field: FieldDescriptor, words: Words, depth: int) -> SearchStrategy[Any]:
    known = words.get(field.name if field.message_type is None else field.message_type.full_name)
    if field.message_type is not None:
        anything: SearchStrategy[Any] = st.deferred(
            lambda: messages(GetMessageClass(field.message_type), words, max(depth - 1, 0))
        )
    elif field.enum_type is not None:
        anything = st.sampled_from([*field.enum_type.values_by_number]) | st.integers(-(2**31), 2**31 - 1)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        anything = st.binary(max_size=64)
    elif field.type == FieldDescriptor.TYPE_STRING:
        anything = st.one_of(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200), _LONG_TEXTS)
    else:
        anything = _SCALARS[field.cpp_type]
    return known | anything if known is not None else anything


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if _is_map(field):
        _set_map(getattr(message, field.name), field.message_type, value)
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _set_map(entries: Any, entry: Descriptor, values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        if entry.fields_by_name["value"].message_type is not None:
            entries[key].CopyFrom(value)
        else:
            entries[key] = value
