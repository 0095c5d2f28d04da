"""`mmf keygen`, `mmf sign`, `mmf verify`: bundles that say who made them (docs/signing.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmf_deploy import bundle as bundles
from mmf_deploy import signing

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(help="The private key; PATH.pub is the public one.")],
) -> None:
    """Make an Ed25519 key pair for signing bundles."""
    fingerprint = signing.generate(path)
    typer.echo(f"private key: {path} (keep it secret; who has it can sign for you)")
    typer.echo(f"public key:  {signing.public_path(path)}, fingerprint {fingerprint}")
    typer.echo(f"next: mmf sign BUNDLE --key {path}")


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle; it is verified first.")],
    key: Annotated[Path, typer.Option(help="The private key, from mmf keygen.")],
) -> None:
    """Verify a bundle and sign its manifest; a signature that is there is replaced."""
    fingerprint = bundles.sign(bundle, key)
    typer.echo(f"signed {bundle / signing.SIGNATURE} with key {fingerprint[:16]}")
    typer.echo(f"next: mmf verify {bundle} --key {signing.public_path(key)}")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    key: Annotated[
        Path, typer.Option(envvar=signing.ENVIRONMENT, help="The public key of its maker.")
    ],
) -> None:
    """Verify the signature of a bundle, then the hash of every file."""
    found = bundles.load(bundle, verify_key=key)
    typer.echo(f"{bundle}: signed by key {signing.fingerprint(signing.public_key(key))[:16]}")
    typer.echo(f"every hash verified; digest {found.digest}")
