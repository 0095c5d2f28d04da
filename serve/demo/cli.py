"""`mmf-demo`: a bundle, or a running service, as a page to try it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

AUTH = ("USER:PASSWORD, repeatable: whoever has none does not get in. It shows in the list of "
        "processes; --auth-file and MMF_DEMO_AUTH (separated by blanks) do not.")  # fmt: skip
SHARE = "Give the page a public address by Gradio's relay for a week; use it with --auth."


@app.command()
def demo(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle made by mmf-export; digits if not given.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Show a running service instead: http://HOST:PORT.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MMF_API_KEY", help="The service's key, with --url.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")
    ] = 7860,
    share: Annotated[bool, typer.Option("--share", help=SHARE)] = False,
    auth: Annotated[
        list[str] | None, typer.Option(envvar="MMF_DEMO_AUTH", help=AUTH, show_envvar=False)
    ] = None,
    auth_file: Annotated[
        Path | None, typer.Option(help="File of USER:PASSWORD lines.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Compute threads; the engine chooses if not given.")
    ] = None,
    max_users: Annotated[
        int, typer.Option(min=1, help="Clicks of one kind that are answered at the same time.")
    ] = 16,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Clicks that may wait; more are refused.")
    ] = 128,
) -> None:  # fmt: skip
    """Open a page that generates images and shows what they cost. Ctrl+C ends it."""
    from .launch import Settings, launch

    launch(
        Settings(
            bundle=bundle,
            url=url,
            api_key=api_key,
            host=host,
            port=port,
            share=share,
            auth=tuple(auth or ()),
            auth_file=auth_file,
            threads=threads,
            max_users=max_users,
            max_queue=max_queue,
        )
    )
