"""`mmf api-keys add|list|revoke`: who may use a service (docs/security.md)."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmf_deploy.errors import ConfigError, nearest

if TYPE_CHECKING:
    from .key_file import Key

app = typer.Typer(
    help="Who may use a service.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

File = Annotated[Path, typer.Argument(help="The file of keys; holds hashes only.")]
Name = Annotated[str, typer.Option("--name", help="Whose key it is; shown in the log.")]

NEXT = "a running service takes it at its next SIGHUP"


@app.command()
def add(
    file: File,
    name: Name,
    images_per_s: Annotated[
        float | None, typer.Option(help="Images a second, on average; no limit if not given.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option(help="Most images at once; ten seconds' worth if not given.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Last day, UTC, e.g. 2027-01-31; never if not given.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it is for; repeat it. All if not given.")
    ] = None,
) -> None:
    """Make a key. It goes to stdout, once; the file keeps its hash."""
    from . import key_file

    keys = key_file.read(file) if file.exists() else []
    if any(key.name == name for key in keys):
        raise ConfigError(
            f"{file}: there is a key {name!r} already; choose another name, or revoke that first"
        )
    key = key_file.new_key()
    entry = {"name": name, "sha256": key_file.digest_of(key).hex(), "images_per_s": images_per_s,
             "burst": burst, "expires": expires, "models": model or None}  # fmt: skip
    key_file.write(file, [*keys, key_file.entry("the new key", entry)])
    typer.echo(f"a key for {name}, shown this once; {file} has its hash. {NEXT}", err=True)
    typer.echo(f"next: mmf-serve BUNDLE --api-keys {file}", err=True)
    typer.echo(key)


@app.command("list")
def show(file: File) -> None:
    """Show names, limits and expiry; there are no keys to show."""
    from . import key_file

    today = datetime.datetime.now(datetime.UTC).date()
    rows: list[tuple[str, ...]] = [("NAME", "IMAGES/S", "BURST", "EXPIRES", "MODELS", "SHA256")]
    rows += [_row(key, today) for key in key_file.read(file)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _row(key: Key, today: datetime.date) -> tuple[str, ...]:
    limited = key.images_per_s is not None
    return (
        key.name,
        f"{key.images_per_s:g}" if limited else "no limit",
        str(key.largest) if limited else "-",
        (str(key.expires) if key.expires else "never") + (" (past)" if key.expired(today) else ""),
        ",".join(key.models) if key.models else "all",
        key.sha256[:8],
    )


@app.command()
def revoke(file: File, name: Name) -> None:
    """Remove a key by its name."""
    from . import key_file

    keys = key_file.read(file)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        names = [key.name for key in keys]
        raise ConfigError(
            f"{file}: no key {name!r}{nearest(name, names)}; there are {', '.join(names) or 'none'}"
        )
    key_file.write(file, left)
    typer.echo(f"revoked {name}; {len(left)} left in {file}. {NEXT}", err=True)
