"""A real browser, and a page that is watched: nothing may run, load or break that should not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import Depends
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.conftest import SERVERS
from tests.web.page.shop import Shop, anybody

PATIENCE = 15_000  # milliseconds that something on the page may take on a busy machine

Open = Callable[..., Awaitable[Page]]


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser of this machine."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=SERVERS["chromium"].url, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def shop(sqlite_url: str) -> AsyncIterator[Shop]:
    """A shop whose operations are open to everybody."""
    async with Shop(sqlite_url, operations=[Depends(anybody)]).served() as shop:
        yield shop


class Watch:
    """What a page must never do."""

    def __init__(self) -> None:
        self.dialogs: list[str] = []
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []

    def watch(self, page: Page) -> None:
        page.on("dialog", lambda dialog: self.dialogs.append(dialog.message))
        page.on("request", lambda request: self._request(request.url))
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _request(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.elsewhere.append(url)

    def _console(self, kind: str, text: str) -> None:
        # A refused or interrupted request is told by the browser, too; it is part of some tests.
        if kind in ("error", "warning") and "Failed to load resource" not in text and "net::ERR" not in text:
            self.complaints.append(text)


@pytest.fixture
async def opening(browser: Browser) -> AsyncIterator[Callable[..., Any]]:
    """Opens pages in contexts of their own, and in the end finds fault with what they did."""
    watch = Watch()
    contexts: list[BrowserContext] = []

    async def open_page(address: str, **options: Any) -> Page:
        context = await browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = await context.new_page()
        watch.watch(page)
        await page.goto(address)
        return page

    yield open_page
    for context in contexts:
        await context.close()
    assert watch.dialogs == []
    assert watch.elsewhere == []
    assert watch.complaints == []


@pytest.fixture
async def page(shop: Shop, opening: Open) -> Page:
    """The operations page of the shop."""
    return await opening(shop.address)
