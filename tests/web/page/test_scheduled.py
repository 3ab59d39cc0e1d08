"""Messages under any key are put off and cancelled from the page, whatever an address could say of it."""

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from fastapi import Depends
from playwright.async_api import Page, expect

from ecotone_fastapi import ScheduledMessages, asynchronous, command_handler, delayed
from tests.web.page.shop import Shop, anybody

pytestmark = pytest.mark.chromium

Open = Callable[..., Awaitable[Page]]


@delayed(timedelta(days=3), key=lambda key: key)
@asynchronous("mails")
@command_handler("wait", id="wait")
async def wait(key: str) -> None: ...


@pytest.mark.parametrize("key", ["..", "a/b?c#d%", "reschedule", "long-" * 300], ids=lambda key: key[:10])
async def test_any_key_is_put_off_and_cancelled(sqlite_url: str, opening: Open, key: str) -> None:
    async with Shop(sqlite_url, operations=[Depends(anybody)], handlers=[wait]).served() as shop:
        scheduled = shop.ecotone.assembly.services[ScheduledMessages]
        for one in (key, "other", f"{key}!"):
            await shop.ecotone.command_bus.send(one, to="wait")
        page = await opening(f"{shop.address}#/scheduled")
        row = page.locator("tbody tr").filter(has=page.get_by_title(key, exact=True))
        await expect(row).to_have_count(1)
        assert len(await row.inner_text()) < 400

        await row.get_by_role("button", name=re.compile("^Reschedule")).click()
        await page.get_by_label("Moment").fill("2099-01-01T12:00:00")
        await page.get_by_role("dialog").get_by_role("button", name="Reschedule").click()
        await expect(row).to_contain_text("2099")
        assert [one.due_at.year for one in await scheduled.list(key)] in ([2098], [2099])

        await row.get_by_role("button", name=re.compile("^Cancel")).click()
        await page.get_by_role("button", name="Cancel it").click()
        await expect(row).to_have_count(0)
        assert sorted(one.key for one in await scheduled.list()) == sorted(["other", f"{key}!"])
