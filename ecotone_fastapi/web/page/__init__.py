"""The operations page: one HTML document, a style sheet and scripts, all of them files of this package.

The page asks the operations API beside it and nobody else. What it may do is written in the headers that it is served
with, so that a script which came with a message could not run, and could not send anything anywhere.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

HEADERS: dict[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time, and answered with 304 as long as nothing has changed: a new release is seen at once.
    "Cache-Control": "private, no-cache",
}
"""What the page and its parts are served with."""

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Part:
    """A file that the page consists of.

    Args:
        content: Its bytes.
        media_type: What it is.
    """

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """What tells this content from any other."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    def answer(self, known: str | None) -> Response:
        """Return the response; without the content, when the browser has it.

        Args:
            known: The header `If-None-Match` of the request.
        """
        headers = {**HEADERS, "ETag": self.etag}
        if known is not None and self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def parts() -> dict[str, Part]:
    """Return every file that the page consists of, by its name."""
    found = {}
    for file in files(__name__).iterdir():
        _, dot, ending = file.name.rpartition(".")
        media_type = _MEDIA_TYPES.get(dot + ending)
        if media_type is not None:
            found[file.name] = Part(file.read_bytes(), media_type)
    return found


def add_page(router: APIRouter) -> None:
    """Add the page and its parts to the router of the operations: whatever stands before these stands before it, too.

    Args:
        router: Where the operations are; the page asks for them at addresses beside its own.
    """
    found = parts()

    @router.get("/page", include_in_schema=False)
    async def page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        """Answer with the page."""
        return found["index.html"].answer(if_none_match)

    @router.get("/page/", include_in_schema=False)
    async def page_with_slash(request: Request) -> Response:
        """Lead to the page, whose parts are at addresses beside its own; relative, as proxies have other addresses."""
        query = request.url.query
        return RedirectResponse(f"../page?{query}" if query else "../page", headers=HEADERS)

    @router.get("/page/{name}", include_in_schema=False)
    async def page_part(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        """Answer with a part of the page."""
        part = found.get(name)
        if part is None:
            raise HTTPException(404, "the page has no such part")
        return part.answer(if_none_match)
