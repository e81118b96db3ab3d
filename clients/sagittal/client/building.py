"""Checks of what a caller gives, and the API's messages made of it: every fault names its field."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from sagittal.client.errors import InvalidRequest

M = TypeVar("M", bound=Message)
T = TypeVar("T")

#: What a field takes, for people.
_EXPECTED: Mapping[int, str] = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "True or False",
    FieldDescriptor.TYPE_UINT32: "an integer from 0 to 2**32 - 1",
    FieldDescriptor.TYPE_UINT64: "an integer from 0 to 2**64 - 1",
    FieldDescriptor.TYPE_INT32: "an integer from -2**31 to 2**31 - 1",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_DOUBLE: "a number",
}


def build(kind: type[M], path: str = "", /, **fields: Any) -> M:
    """Returns a message with these fields, None for those that are not set.

    Raises:
        InvalidRequest: a field does not take its value; `path` is where the message stands in the request.
    """
    message = kind()
    for name, value in fields.items():
        try:
            message.MergeFrom(kind(**{name: value}))
        except (TypeError, ValueError, OverflowError) as error:
            described: Any = kind.DESCRIPTOR.fields_by_name[name]
            expected = _EXPECTED.get(described.type, str(error))
            if described.is_repeated:
                expected = f"several of: {expected}"
            place = f"{path}.{name}" if path else name
            raise InvalidRequest(f"got {shown(value)}; expected {expected}", field=place) from error
    return message


def check_names(options: Mapping[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> None:
    """Raises InvalidRequest for an option that there is not, and for one that must be given."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidRequest(f"no option {unknown[0]!r}; there are: {', '.join(sorted(known))}", field=unknown[0])
    missing = sorted(set(required) - set(options))
    if missing:
        raise InvalidRequest(f"{missing[0]} is not given", field=missing[0])


def check_kind(value: object, kind: type[T], field: str, expected: str) -> T:
    """Returns a value that is of a type. Raises InvalidRequest for any other."""
    if not isinstance(value, kind):
        raise InvalidRequest(f"got {shown(value)}; expected {expected}", field=field)
    return value


def check_seconds(settings: object, names: Iterable[str], path: str) -> None:
    """Raises InvalidRequest for a setting that is no time in seconds."""
    for name in names:
        seconds = getattr(settings, name)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < MAX_SECONDS:
            raise InvalidRequest(f"got {shown(seconds)}; expected seconds, at least 0", field=f"{path}.{name}")


def check_listener(listener: object, field: str) -> None:
    """Raises InvalidRequest for what cannot be called with an event; None is called with none."""
    if listener is not None and not callable(listener):
        raise InvalidRequest(f"got {shown(listener)}; expected a function that takes an event", field=field)


def check_several(values: Iterable[T], field: str, expected: str) -> Iterable[T]:
    """Returns several values. Raises InvalidRequest for a text or another single value, whose parts nobody means."""
    single = isinstance(values, str | bytes | bytearray | memoryview) or hasattr(values, "__array__")
    if single or not isinstance(values, Iterable):
        raise InvalidRequest(f"got {shown(values)}; expected several: {expected}", field=field)
    return values


def split_model(model: object, version: object, path: str = "") -> tuple[str, str]:
    """Returns name and version of a model, whose name may be given as lists print it: "name@version"."""
    place = f"{path}.model" if path else "model"
    name = check_kind(model, str, place, "the name of a registered model")
    given = check_kind(version, str, f"{place}_version", "a version, or nothing for the latest")
    name, _, wanted = name.partition("@")
    if wanted and given and wanted != given:
        raise InvalidRequest(f"{model!r} names version {wanted}, and the version is {given!r}; give one", field=place)
    return name, wanted or given


def named(model: object, version: object) -> Mapping[str, str]:
    """Returns the fields of a request that is about a model."""
    name, version = split_model(model, version)
    return {"name": name, "version": version}


def checked_timeout(seconds: T) -> T:
    """Returns a time in seconds, or None for no bound. Raises InvalidRequest for what is neither."""
    if seconds is None or (isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0):
        return seconds
    raise InvalidRequest(f"got {shown(seconds)}; expected seconds, more than 0", field="timeout")


def build_durations(message: Message, path: str, durations: Mapping[str, object]) -> None:
    """Sets fields that are given in seconds; None and 0 leave them as they are."""
    for name, seconds in durations.items():
        if seconds is None:
            continue
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < MAX_SECONDS:
            raise InvalidRequest(f"got {shown(seconds)}; expected seconds, at least 0", field=f"{path}.{name}")
        if seconds:
            getattr(message, name).FromNanoseconds(round(seconds * 1e9))


#: Longest time that can be asked for, in seconds: what a duration of nanoseconds in 64 bits holds.
MAX_SECONDS = 2**63 / 1e9


def enum_value(wrapper: Any, prefix: str, name: object, field: str) -> Any:
    """Returns the API's number of a value by its short name, such as "batch" of `LANE_BATCH`."""
    full = f"{prefix}{name}".upper().replace("-", "_")
    known: Sequence[str] = [each for each in wrapper.keys() if not each.endswith("_UNSPECIFIED")]  # noqa: SIM118
    if not isinstance(name, str) or full not in known:
        names = ", ".join(each.removeprefix(prefix).lower() for each in known)
        raise InvalidRequest(f"got {shown(name)}; expected one of: {names}", field=field)
    return wrapper.Value(full)


def shown(value: object) -> str:
    """Returns a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


#: Characters of a value in a message.
MAX_SHOWN = 80
