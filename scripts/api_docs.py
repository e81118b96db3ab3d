#!/usr/bin/env python3
"""Writes docs/api.md, the reference of the API, from the .proto files and their comments.

With --check it writes nothing, and fails if the document is not current.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from sagittal.explain import EXPLAINERS, parameters
from sagittal.v1 import method_pb2

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
PACKAGE = "sagittal.v1"

HEAD = """# gRPC API

Package `sagittal.v1`. Generated from the comments in `protos/sagittal/v1` by `make reference`. A field that is not set
has its default. For an optional parameter of a method, the table shows the default of the method. For every other field
the default is 0, empty, false or the first value of the enumeration.

"""

Field = FieldDescriptorProto
#: Names of scalar types by their number in descriptors.
SCALARS: Mapping[int, str] = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in Field.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}
#: Files that come first; messages that they share follow, by the name of their file.
FIRST = ("explanation_service", "batch_service", "model_service", "concept_service")
#: Numbers of fields in descriptors, as used in paths of source locations.
MESSAGES, ENUMS, SERVICES, FIELDS, NESTED, NESTED_ENUMS, VALUES, METHODS = 4, 5, 6, 2, 3, 4, 2, 2

METHOD = method_pb2.Method.DESCRIPTOR

Comments = Mapping[tuple[int, ...], str]


def read_protos() -> FileDescriptorSet:
    """Returns the descriptors of the API with their comments."""
    buf = Path(sys.executable).with_name("buf")
    command = [str(buf), "build", "--as-file-descriptor-set", "-o", "-"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return FileDescriptorSet.FromString(built.stdout)


def comments_of(file: FileDescriptorProto) -> Comments:
    """Returns the comments of a file by the path of the element they describe."""
    return {
        tuple(place.path): " ".join((place.leading_comments or place.trailing_comments).split())
        for place in file.source_code_info.location
    }


def anchor(name: str) -> str:
    """Returns the anchor of a message, an enumeration or a service."""
    return name.removeprefix(f".{PACKAGE}.").replace(".", "").lower()


def type_of(field: Field) -> str:
    """Returns the type of a field, as a link if the page describes it."""
    if field.type in SCALARS:
        name = f"`{SCALARS[field.type]}`"
    elif field.type_name.startswith(f".{PACKAGE}."):
        name = f"[{field.type_name.removeprefix(f'.{PACKAGE}.')}](#{anchor(field.type_name)})"
    else:
        name = f"`{field.type_name[1:]}`"
    return f"repeated {name}" if field.label == Field.LABEL_REPEATED else name


def cell(text: str) -> str:
    """Returns text escaped for a table cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def describe_service(service: ServiceDescriptorProto, path: tuple[int, ...], comments: Comments) -> Iterator[str]:
    """Yields a service with its RPCs."""
    yield f"### {service.name}\n\n{comments.get(path, '')}\n"
    yield "| RPC | request | response | what it does |\n| --- | --- | --- | --- |"
    for number, method in enumerate(service.method):
        text = cell(comments.get((*path, METHODS, number), ""))
        asked, given = (_message_link(name) for name in (method.input_type, method.output_type))
        asked = f"stream of {asked}" if method.client_streaming else asked
        given = f"stream of {given}" if method.server_streaming else given
        yield f"| `{method.name}` | {asked} | {given} | {text} |"
    yield ""


def _message_link(name: str) -> str:
    return f"[{name.removeprefix(f'.{PACKAGE}.')}](#{anchor(name)})"


def describe_message(message: DescriptorProto, path: tuple[int, ...], comments: Comments, within: str) -> Iterator[str]:
    """Yields a message with its fields, then its nested messages and enumerations."""
    name = f"{within}{message.name}"
    yield f"### {name}\n\n{comments.get(path, '')}\n"
    if message.field:
        yield "| field | type | meaning |\n| --- | --- | --- |"
        for number, field in enumerate(message.field):
            yield _field_row(message, field, comments.get((*path, FIELDS, number), ""))
        yield ""
    for number, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from describe_message(nested, (*path, NESTED, number), comments, f"{name}.")
    for number, enum in enumerate(message.enum_type):
        yield from describe_enum(enum, (*path, NESTED_ENUMS, number), comments, f"{name}.")


def default_of(message: str, field: str) -> str:
    """Returns the default that a method has for a parameter, as a part of a sentence; empty for any other field."""
    for row in EXPLAINERS.values():
        if row.field != "custom" and METHOD.fields_by_name[row.field].message_type.name == message:
            found = {each.name: each.default for each in parameters(row.explainer)}.get(field)
            return "" if found is None else f", default `{json.dumps(found)}`"
    return ""


def _field_row(message: DescriptorProto, field: Field, text: str) -> str:
    if field.HasField("oneof_index") and not field.proto3_optional:
        text = f"One of `{message.oneof_decl[field.oneof_index].name}`. {text}"
    if field.proto3_optional:
        text = f"Optional{default_of(message.name, field.name)}. {text}"
    entries = {f".{PACKAGE}.{message.name}.{nested.name}": nested for nested in message.nested_type}
    entry = entries.get(field.type_name)
    if entry is not None and entry.options.map_entry:
        kind = f"map of {type_of(entry.field[0])} to {type_of(entry.field[1])}"
    else:
        kind = type_of(field)
    return f"| `{field.name}` | {kind} | {cell(text)} |"


def describe_enum(enum: EnumDescriptorProto, path: tuple[int, ...], comments: Comments, within: str) -> Iterator[str]:
    """Yields an enumeration with its values."""
    name = f"{within}{enum.name}"
    yield f"### {name}\n\n{comments.get(path, '')}\n"
    yield "| value | number | meaning |\n| --- | --- | --- |"
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {cell(comments.get((*path, VALUES, number), ''))} |"
    yield ""


def _order(file: FileDescriptorProto) -> tuple[int, str]:
    stem = Path(file.name).stem
    return (FIRST.index(stem) if stem in FIRST else len(FIRST), stem)


def page() -> str:
    """Returns the document."""
    files = [file for file in read_protos().file if file.package == PACKAGE]
    files.sort(key=_order)
    lines: list[str] = []
    for file in files:
        comments = comments_of(file)
        lines.append(f"## {Path(file.name).name}\n")
        for number, service in enumerate(file.service):
            lines += describe_service(service, (SERVICES, number), comments)
        for number, message in enumerate(file.message_type):
            lines += describe_message(message, (MESSAGES, number), comments, "")
        for number, enum in enumerate(file.enum_type):
            lines += describe_enum(enum, (ENUMS, number), comments, "")
    return HEAD + "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Writes the page, or with --check reports whether it is current."""
    text = page()
    if "--check" in sys.argv[1:]:
        current = PAGE.exists() and PAGE.read_text() == text
        sys.stderr.write("" if current else "docs/api.md is not current: run make reference\n")
        return 0 if current else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
