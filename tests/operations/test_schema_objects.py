"""Schemas in the dialect of AsyncAPI say the same as before."""

from typing import Any

import jsonschema
import pytest

from ecotone_fastapi.operations.schema_objects import schema_object


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, True),
        ({}, {}),
        ({"type": "string", "enum": ["a"]}, {"type": "string", "enum": ["a"]}),
        (
            {"prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
            {"items": [{"type": "integer"}], "additionalItems": {"type": "string"}},
        ),
        ({"prefixItems": [], "maxItems": 0}, {"maxItems": 0}),
        (
            {"oneOf": [{"$ref": "#/a"}], "discriminator": {"propertyName": "kind", "mapping": {"a": "#/a"}}},
            {"oneOf": [{"$ref": "#/a"}], "discriminator": "kind"},
        ),
        ({"$ref": "#/a"}, {"$ref": "#/a"}),
        ({"$ref": "#/a", "default": 1}, {"default": 1, "allOf": [{"$ref": "#/a"}]}),
        ({"$ref": "#/a", "allOf": [{"minimum": 1}]}, {"allOf": [{"$ref": "#/a"}, {"minimum": 1}]}),
        (
            {"properties": {"a": {"not": {}, "title": "A"}, "b": {}}, "required": ["a", "b"]},
            {"properties": {"b": {}}, "required": ["b"]},
        ),
        ({"properties": {"a": {"not": {}}}, "required": ["a"]}, {"properties": {}}),
    ],
)
def test_each_word_is_translated(schema: Any, expected: Any) -> None:
    assert schema_object(schema) == expected


@pytest.mark.parametrize("place", ["additionalProperties", "not", "propertyNames", "contains", "if", "then", "items"])
def test_schemas_within_schemas_are_translated(place: str) -> None:
    assert schema_object({place: {"$ref": "#/a", "title": "A"}})[place] == {"title": "A", "allOf": [{"$ref": "#/a"}]}


@pytest.mark.parametrize("place", ["allOf", "anyOf", "oneOf"])
def test_schemas_in_lists_are_translated(place: str) -> None:
    assert schema_object({place: [{"prefixItems": [{}]}]}) == {place: [{"items": [{}]}]}


def test_what_is_no_schema_is_left_alone() -> None:
    """A field may have the name of any word, and a default may look like a schema."""
    schema = {
        "properties": {"prefixItems": {"type": "string"}, "$ref": {"type": "string"}, "not": {"type": "integer"}},
        "patternProperties": {"^x": {"type": "string"}},
        "default": {"prefixItems": [1], "$ref": "#/a", "title": "A"},
        "examples": [{"discriminator": {"propertyName": "kind"}}],
        "const": {"properties": {"a": {"not": {}}}},
    }

    assert schema_object(schema) == schema


@pytest.mark.parametrize(
    ("value", "is_valid"),
    [([1, "a"], True), ([1, "a", True], True), ([1, "a", "b"], False), (["a", 1], False), ([1], True)],
)
def test_a_tuple_means_the_same_in_both_dialects(value: Any, is_valid: bool) -> None:
    schema = {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string"}],
        "items": {"type": "boolean"},
    }

    assert jsonschema.Draft202012Validator(schema).is_valid(value) is is_valid
    assert jsonschema.Draft7Validator(schema_object(schema)).is_valid(value) is is_valid


def test_the_schema_that_was_given_is_not_changed() -> None:
    schema = {"properties": {"a": {"not": {}}}, "required": ["a"], "prefixItems": [{}]}

    schema_object(schema)

    assert schema == {"properties": {"a": {"not": {}}}, "required": ["a"], "prefixItems": [{}]}
