"""The typed messages of the API and the explainers' parameters say the same."""

import pytest

from sagittal.core.enums import enum_name
from sagittal.explain import EXPLAINERS, parameters
from sagittal.v1 import method_pb2

FIELDS = method_pb2.Method.DESCRIPTOR.fields_by_name
TYPED = [row for row in EXPLAINERS.values() if row.field != "custom"]

KINDS = {
    "int": {"TYPE_UINT32", "TYPE_UINT64"},
    "float": {"TYPE_FLOAT"},
    "bool": {"TYPE_BOOL"},
    "str": {"TYPE_STRING", "TYPE_ENUM"},
    "tensor": {"TYPE_MESSAGE"},
}


def type_name(field):
    constants = {value: name for name, value in vars(type(field)).items() if name.startswith("TYPE_")}
    return constants[field.type]


@pytest.mark.parametrize("row", TYPED, ids=lambda row: row.name)
def test_every_parameter_has_a_field_of_its_type(row):
    fields = FIELDS[row.field].message_type.fields_by_name
    for declared in parameters(row.explainer):
        assert declared.name in fields, f"{row.field} lacks {declared.name}"
        assert type_name(fields[declared.name]) in KINDS[declared.type], declared.name


@pytest.mark.parametrize("row", TYPED, ids=lambda row: row.name)
def test_every_choice_has_an_enum_value(row):
    fields = FIELDS[row.field].message_type.fields_by_name
    for declared in parameters(row.explainer):
        enum = fields[declared.name].enum_type
        if enum is not None:
            names = {enum_name(enum, number) for number in enum.values_by_number if number}
            assert set(declared.bounds.choices) <= names
            assert declared.default in names


def test_names_aliases_and_fields_are_unique():
    names = [name for row in EXPLAINERS.values() for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    assert len({row.field for row in TYPED}) == len(TYPED)
