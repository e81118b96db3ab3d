"""Values of the API's enums: their names in the catalogue, and a check for unknown numbers."""

from google.protobuf.descriptor import EnumDescriptor

from sagittal.core.errors import InvalidRequest


def enum_name(enum: EnumDescriptor, number: int) -> str | None:
    """Returns the catalogue's name of an enum's value; None if the enum has no such value."""
    value = enum.values_by_number.get(number)
    if value is None:
        return None
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name.removeprefix(prefix).lower().replace("_", "-"))


def check_enum(enum: EnumDescriptor, number: int, field: str) -> None:
    """Raises InvalidRequest for a number that this API version does not know."""
    if number not in enum.values_by_number:
        names = ", ".join(name for name in enum.values_by_name if not name.endswith("_UNSPECIFIED"))
        raise InvalidRequest(f"{field} is {number}; give one of {names}", field=field)
