"""A real browser, and a page that is watched: nothing may run, load or break that should not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import Depends
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.conftest import SERVERS
from tests.web.page.shop import Shop, anybody

SIZE: Any = {"viewport": {"width": 1280, "height": 860}}
PATIENCE = 45_000  # milliseconds that something on the page may take on a busy machine

expect.set_options(timeout=PATIENCE)

Open = Callable[..., Awaitable[Page]]


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser of this machine."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=SERVERS["chromium"].url, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
async def tab(browser: Browser) -> AsyncIterator[Page]:
    """A page that tests use one after the other: every application has an origin of its own, and so does what it keeps.

    To open a new one takes longer than most tests.
    """
    context = await browser.new_context(**SIZE)
    context.set_default_timeout(PATIENCE)
    yield await context.new_page()
    await context.close()


@pytest.fixture
async def shop(sqlite_url: str) -> AsyncIterator[Shop]:
    """A shop whose operations are open to everybody."""
    async with Shop(sqlite_url, operations=[Depends(anybody)]).served() as shop:
        yield shop


class Watch:
    """What a page must never do."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def watch(self, page: Page) -> Callable[[], None]:
        """Watch a page; return what ends that."""
        listeners: list[tuple[Any, Callable[[Any], None]]] = [
            ("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}")),
            ("request", lambda request: self._request(request.url)),
            ("console", lambda message: self._console(message.type, message.text)),
            ("pageerror", lambda error: self.faults.append(str(error))),
        ]
        for event, listener in listeners:
            page.on(event, listener)

        def end() -> None:
            for event, listener in listeners:
                page.remove_listener(event, listener)

        return end

    def _request(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme not in ("data", "blob", "about") and address.hostname != "127.0.0.1":
            self.faults.append(f"request: {url}")

    def _console(self, kind: str, text: str) -> None:
        # A refused or interrupted request is told by the browser, too; it is part of some tests.
        if kind in ("error", "warning") and "Failed to load resource" not in text and "net::ERR" not in text:
            self.faults.append(f"{kind}: {text}")


@pytest.fixture
async def opening(browser: Browser, tab: Page) -> AsyncIterator[Open]:
    """Opens pages, and in the end finds fault with what they did. With options they have a context of their own."""
    watch = Watch()
    leaving: list[Callable[[], Awaitable[Any]]] = []
    ended: list[Callable[[], None]] = []

    async def open_page(address: str, **options: Any) -> Page:
        page = tab
        if options:
            context = await browser.new_context(**{**SIZE, **options})
            context.set_default_timeout(PATIENCE)
            leaving.append(context.close)
            page = await context.new_page()
        else:
            leaving.append(lambda: page.goto("about:blank"))
        ended.append(watch.watch(page))
        await page.goto(address)
        return page

    yield open_page
    for end in ended:
        end()
    for leave in leaving:
        await leave()
    assert watch.faults == []


@pytest.fixture
async def page(shop: Shop, opening: Open) -> Page:
    """The operations page of the shop."""
    return await opening(shop.address)
