"""The `mmf` command and its aliases. A stage is imported only when its command runs."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from mmf_deploy import __version__
from mmf_deploy.errors import MMFError

# name -> (module, one line of help); every module has a typer app called `app`
COMMANDS = {
    "quickstart": (
        "mmf_deploy.quickstart",
        "Train, export, benchmark and serve digits in minutes.",
    ),
    "train": ("mmf_deploy.training.cli", "Train a one-step generator from a recipe."),
    "export": ("mmf_deploy.export.cli", "Freeze a checkpoint into a verified bundle."),
    "import": (
        "mmf_deploy.export.importers.cli",
        "Turn weights from elsewhere into a run.",
    ),
    "serve": ("mmf_deploy.serve.cli", "Serve a bundle over HTTP."),
    "api-keys": ("mmf_deploy.serve.keys_cli", "Add, list and revoke the API keys of a service."),
    "demo": ("mmf_deploy.serve.demo.cli", "Open a bundle, or a service, in the browser."),
    "bench": ("mmf_deploy.serve.bench.cli", "Measure latency, and how near the limit it is."),
    "bench-limit": ("mmf_deploy.serve.bench.limit_cli", "Check the limit that mmf bench shows."),
    "bench-serve": (
        "mmf_deploy.serve.load.cli",
        "Load a service and check every image that comes back.",
    ),
    "plan": ("mmf_deploy.serve.plan.cli", "Say how many replicas a rate of requests needs."),
    "report": ("mmf_deploy.report_cli", "Join results of benchmarks into one HTML page."),
    "bench-step": ("mmf_deploy.training.bench_step_cli", "Measure what a training step costs."),
    "reproduce": (
        "mmf_deploy.training.experiments.cli",
        "Train and measure the tables and figures of the paper.",
    ),
    "sample": ("mmf_deploy.sample_cli", "Generate images from a bundle or a checkpoint."),
    "inspect": ("mmf_deploy.inspect_cli", "Show what a bundle or a checkpoint holds."),
    "selftest": ("mmf_deploy.selftest_cli", "Check an engine on this machine, and time it."),
    "keygen": ("mmf_deploy.sign_cli", "Make a key pair for signing bundles."),
    "sign": ("mmf_deploy.sign_cli", "Sign a bundle."),
    "verify": ("mmf_deploy.sign_cli", "Verify a bundle and who made it."),
}

_PASS_THROUGH = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
    "allow_interspersed_args": False,
}

app = typer.Typer(
    name="mmf",
    help="Train a one-step image generator with Modular MeanFlow, export it, serve it. "
    "--debug after any command shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"mmf-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Common options; `--debug` after any command shows the traceback of an error."""


def _forward(name: str, module: str) -> Callable[[typer.Context], None]:
    def command(ctx: typer.Context) -> None:
        _run_app(module, f"mmf {name}", ctx.args)

    return command


for _name, (_module, _help) in COMMANDS.items():
    app.command(_name, help=_help, context_settings=_PASS_THROUGH)(_forward(_name, _module))


def _run_app(module: str, prog: str, args: Sequence[str]) -> Any:
    stage: typer.Typer = importlib.import_module(module).app
    names = {c.name or getattr(c.callback, "__name__", "") for c in stage.registered_commands}
    first, _, name = prog.partition(" ")
    if len(names) > 1 and name in names:  # a module of several commands: the word says which
        prog, args = first, [name, *args]
    return stage(args=list(args), prog_name=prog, standalone_mode=True)


def _guarded(run: Callable[[list[str]], Any]) -> None:
    """Run a command; an error of ours becomes one line and an exit code."""
    args = sys.argv[1:]
    debug = "--debug" in args or os.environ.get("MMF_DEBUG") == "1"
    try:
        run([a for a in args if a != "--debug"])
    except MMFError as e:
        if debug:
            traceback.print_exc()
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        # the reader (head, less) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as e:
        # a file that cannot be read or written is the machine's word, not a bug
        if debug:
            traceback.print_exc()
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1)
    except Exception as e:
        if debug:
            traceback.print_exc()
        else:
            print(f"bug: {type(e).__name__}: {e}. --debug shows where; please report it",
                  file=sys.stderr)  # fmt: skip
        sys.exit(70)


def main() -> None:
    """Entry point of `mmf`."""
    _guarded(lambda args: app(args=args, prog_name="mmf"))


def main_train() -> None:
    """Entry point of `mmf-train`."""
    _guarded(lambda args: _run_app(COMMANDS["train"][0], "mmf-train", args))


def main_export() -> None:
    """Entry point of `mmf-export`."""
    _guarded(lambda args: _run_app(COMMANDS["export"][0], "mmf-export", args))


def main_serve() -> None:
    """Entry point of `mmf-serve`."""
    _guarded(lambda args: _run_app(COMMANDS["serve"][0], "mmf-serve", args))


def main_bench() -> None:
    """Entry point of `mmf-bench`."""
    _guarded(lambda args: _run_app(COMMANDS["bench"][0], "mmf-bench", args))


def main_demo() -> None:
    """Entry point of `mmf-demo`."""
    _guarded(lambda args: _run_app(COMMANDS["demo"][0], "mmf-demo", args))


if __name__ == "__main__":
    main()
