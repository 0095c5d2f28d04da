"""What stands before Gradio."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from mmf_deploy.serve.demo.door import Door

PAGE = (
    b'<html><head><meta property="og:title" content="Gradio" /><meta\n\tname="twitter:image"\n'
    b'content="https://elsewhere/x.jpg"/><meta name="viewport" content="w"></head><body></head>'
)


def reply(path, method="GET", body=PAGE):
    seen = []

    async def inner(scope, receive, send):
        seen.append(dict(scope["headers"]))
        start = [(b"content-type", b"text/html"), (b"Content-Length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": body[:50], "more_body": True})
        await send({"type": "http.response.body", "body": body[50:]})

    async def ask():
        transport = httpx.ASGITransport(Door(inner, "a <title>", 'say "hi"'))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path)

    return asyncio.run(ask()), seen


def test_the_page_introduces_itself_and_names_nobody_else():
    found, seen = reply("/?seed=1")
    assert "Gradio" not in found.text
    assert "elsewhere" not in found.text
    assert found.text.count("<title>a &lt;title&gt;</title>") == 1
    assert 'content="say &quot;hi&quot;"' in found.text
    assert 'name="viewport"' in found.text
    assert found.text.count("</head>") == 2
    assert int(found.headers["content-length"]) == len(found.content)
    assert b"accept-encoding" not in seen[0]


def test_everything_else_goes_through_untouched():
    for path, method in (("/config", "GET"), ("/", "POST")):
        found, seen = reply(path, method)
        assert found.content == PAGE
        assert b"accept-encoding" in seen[0]


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/gradio_api/upload/", "/gradio_api/proxy=http://x", "/monitoring"],
)
def test_doors_that_nobody_needs_are_shut(path):
    found, seen = reply(path, "POST")
    assert (found.status_code, found.content, seen) == (404, b"", [])
