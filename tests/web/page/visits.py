"""Ways to the sections of the page that several tests take."""

from datetime import UTC, datetime

from playwright.async_api import Page, expect

from ecotone_fastapi.core.message import Message
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore, ParkedMessage
from tests.web.page.shop import Shop


async def list_of(shop: Shop, page: Page, filter_: str = "") -> None:
    """Show the dead letters that a filter means."""
    await page.goto(f"{shop.address}#/dead-letters{filter_}")
    await expect(page.locator("main table")).to_be_visible()


async def only_id(shop: Shop) -> str:
    """Return the id of the only dead letter."""
    [one] = await shop.ecotone.dead_letters.list()
    return one.id


async def park(shop: Shop, id_: str, payload: str, endpoint: str = "charge-card") -> None:
    """Put a message into the dead letter as a consumer does."""
    headers = {"id": id_, "content_type": "application/json", "endpoint": endpoint}
    parked = ParkedMessage(
        id=id_,
        message=Message(payload.encode(), headers),
        channel="payments",
        endpoint=endpoint,
        error_type="builtins.ValueError",
        error_message="no",
        traceback="",
        attempts=1,
        deliveries=1,
        parked_at=datetime.now(UTC),
    )
    await shop.ecotone.assembly.services[DeadLetterStore].park(parked)
