"""From the JSON Schema that pydantic writes (2020-12) to the Schema Object of AsyncAPI 3, which stands on draft 07."""

from typing import Any

_ONE = ("additionalProperties", "not", "propertyNames", "contains", "if", "then", "else", "items")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties")


def schema_object(schema: Any) -> Any:
    """Return a schema as AsyncAPI takes it: it says the same.

    - The places of a tuple are `items`, and what may come after them is `additionalItems`.
    - A discriminator is the name of the property alone.
    - What stands beside a reference is beside an `allOf` with it, because draft 07 would not look at it.
    - A property that no value can have is left out: that is how computed fields come, which are not written.

    Example:
        >>> schema_object({"type": "array", "prefixItems": [{"type": "integer"}, {}], "minItems": 2, "maxItems": 2})
        {'type': 'array', 'minItems': 2, 'maxItems': 2, 'items': [{'type': 'integer'}, {}]}
    """
    if not isinstance(schema, dict):
        return schema
    return _in_draft_07({key: _within(key, value) for key, value in schema.items()})


def _within(key: str, value: Any) -> Any:
    if key in _NAMED and isinstance(value, dict):
        return {name: schema_object(one) for name, one in value.items()}
    if key in _SEVERAL and isinstance(value, list):
        return [schema_object(one) for one in value]
    return schema_object(value) if key in _ONE else value


def _in_draft_07(schema: dict[str, Any]) -> dict[str, Any]:
    places = schema.pop("prefixItems", None)
    if places:
        if "items" in schema:
            schema["additionalItems"] = schema["items"]
        schema["items"] = places
    discriminator = schema.get("discriminator")
    if isinstance(discriminator, dict):
        schema["discriminator"] = discriminator["propertyName"]
    properties = schema.get("properties")
    if isinstance(properties, dict):
        never = [name for name, one in properties.items() if isinstance(one, dict) and one.get("not") == {}]
        _leave_out(schema, properties, never)
    reference = schema.get("$ref")
    if reference is not None and len(schema) > 1:
        del schema["$ref"]
        schema["allOf"] = [{"$ref": reference}, *schema.get("allOf", ())]
    return schema


def _leave_out(schema: dict[str, Any], properties: dict[str, Any], names: list[str]) -> None:
    for name in names:
        del properties[name]
    required = [name for name in schema.get("required", ()) if name not in names]
    if required:
        schema["required"] = required
    else:
        schema.pop("required", None)
