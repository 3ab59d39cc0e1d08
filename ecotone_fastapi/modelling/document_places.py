"""Places in a list of documents, as text that clients bring back to get the page that follows."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any

from ecotone_fastapi.core.errors import ConversionError
from ecotone_fastapi.modelling.document_filters import Ordering, Place, as_json, parsed, picked, told_in_json
from ecotone_fastapi.modelling.document_storage import Document, check_id


def place_as_text(document: Document[str], order: Sequence[Ordering]) -> str:
    """Return the place of a document in a list as text."""
    body = parsed(document.value)
    found = [(one, picked(body, one.path)) for one in order]
    values = [as_json(value if one.rank(value) else None) for one, value in found]
    text = json.dumps([_signature(order), values, document.id], ensure_ascii=False, separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def place_of(text: str, order: Sequence[Ordering]) -> Place:
    """Return the place that was told as text, which may come from anybody."""
    try:
        signature, values, document_id = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if signature != _signature(order) or len(values) != len(order):
            raise ValueError("it is of another order")
        read = [parsed(value) for value in values]
        for value, one in zip(read, order, strict=True):
            if value is not None and (not one.rank(value) or told_in_json(value, "a field")[1] != value):
                raise ValueError(f"{value!r} is nothing to order by")
        return Place(tuple(read), check_id(document_id))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConversionError(
            f"after={text!r} is no place in this list",
            tried=str(error),
            hint="give what the page before has as next, with the same order_by",
        ) from error


def _signature(order: Sequence[Ordering]) -> list[Any]:
    return [[*one.path, one.descending] for one in order]
