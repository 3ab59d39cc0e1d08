"""Whatever a payload is, the tab of the operator stays usable."""

from datetime import UTC, datetime

import pytest
from playwright.async_api import Page

from ecotone_fastapi.core.message import Message
from ecotone_fastapi.messaging.dead_letter import DeadLetterStore, ParkedMessage
from tests.web.page.shop import Shop

pytestmark = pytest.mark.chromium


async def park(shop: Shop, payload: str) -> None:
    """Put a message into the dead letter as a consumer does."""
    message = Message(payload.encode(), {"id": "one", "content_type": "application/json", "endpoint": "charge-card"})
    parked = ParkedMessage(
        id="one",
        message=message,
        channel="payments",
        endpoint="charge-card",
        error_type="builtins.ValueError",
        error_message="no",
        traceback="",
        attempts=1,
        deliveries=1,
        parked_at=datetime.now(UTC),
    )
    await shop.ecotone.assembly.services[DeadLetterStore].park(parked)


@pytest.mark.parametrize("depth", [5_000, 31_000])
async def test_a_payload_that_is_nested_deeply_is_shown_and_edited(shop: Shop, page: Page, depth: int) -> None:
    await park(shop, "[" * depth + "]" * depth)

    await page.goto(f"{shop.address}#/dead-letters/one")

    shown = await page.get_by_role("region", name="Payload").inner_text()
    assert shown.count("[") == depth
    assert len(shown) < 4 * 2 * depth + 10_000
    await page.get_by_role("button", name="Edit and replay").click()
    assert await page.locator("#edited-payload").input_value() == shown


async def test_a_payload_gets_lines_and_indents_as_far_as_they_help(page: Page) -> None:
    written = await page.evaluate(
        """async () => {
            const { pretty } = await import("./page/json.js");
            const wide = "[".repeat(45) + "1" + ",1".repeat(30000) + "]".repeat(45);
            return {
                plain: pretty('{"a":[1e400,"x\\\\\\"[,"],"b":{},"c":[]}'),
                deep: pretty("[".repeat(52) + "1,2" + "]".repeat(52)).split("\\n").slice(49),
                wide: pretty(wide) === wide,
                none: pretty("[1,"),
                text: pretty(JSON.stringify("\\\\".repeat(500000))).length,
            };
        }"""
    )

    assert written["plain"] == '{\n  "a": [\n    1e400,\n    "x\\"[,"\n  ],\n  "b": {},\n  "c": []\n}'
    assert written["deep"][:3] == [" " * 98 + "[", " " * 100 + "[[1,2]]", " " * 98 + "]"]
    assert written["wide"]
    assert written["none"] is None
    assert written["text"] == 1_000_002
