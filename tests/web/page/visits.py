"""Ways to the sections of the page that several tests take."""

from playwright.async_api import Page, expect

from tests.web.page.shop import Shop


async def list_of(shop: Shop, page: Page, filter_: str = "") -> None:
    """Show the dead letters that a filter means."""
    await page.goto(f"{shop.address}#/dead-letters{filter_}")
    await expect(page.locator("main table")).to_be_visible()


async def only_id(shop: Shop) -> str:
    """Return the id of the only dead letter."""
    [one] = await shop.ecotone.dead_letters.list()
    return one.id
