"""The AsyncAPI document over HTTP."""

from tests.web.operations.shops import operated


async def test_the_document_is_served_under_the_name_of_the_application() -> None:
    async with operated() as operations:
        document = await operations.get("/asyncapi.json")

        assert document["asyncapi"] == "3.0.0"
        assert document["info"]["title"] == "FastAPI"
        assert {"mails", "bytes"} <= set(document["channels"])
        assert document["components"]["messages"]["mail"]["payload"] == {"type": "string"}
