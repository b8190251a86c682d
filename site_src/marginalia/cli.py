"""The command `marginalia`: what the site's build does, one step at a time, for people and scripts.

Exit status: 0, or 1 when something on a page failed, or 2 for wrong use.
"""

from __future__ import annotations

import functools
import io
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from marginalia import __version__, isolation, scaffold
from marginalia.demo import Result
from marginalia.errors import MarginaliaError
from marginalia.jobs import Job, Ran, Status
from marginalia.keys import device_kind
from marginalia.limits import DEFAULTS, NAMES, Limits
from marginalia.options import default_workers
from marginalia.paper import discover, load, url_of
from marginalia.report import PageReport, Report, failure_of, json_text
from marginalia.rows import parse
from marginalia.runner import leave, run_isolated
from marginalia.snippet import runnable
from marginalia.source import read_source

FAILED = 1

_F = TypeVar("_F", bound=Callable[..., Any])


class _Command(click.Command):
    """A command whose own errors (a file that cannot be read, say) end it with status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MarginaliaError as error:
            click.echo(f"marginalia: {error}", err=True)
            ctx.exit(FAILED)


class _Group(click.Group):
    command_class = _Command


class _Number(click.FloatRange):
    """A number in a range; NaN is in none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


def example(line: str) -> str:
    """An epilog that shows one call."""
    return f"Example: {line}"


def source_argument(command: _F) -> _F:
    """FILE: an existing Python module, script or notebook."""
    kind = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.argument("file", type=kind)(command)


def folder_argument(command: _F) -> _F:
    """DIR: an existing folder of modules."""
    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.argument("folder", metavar="DIR", type=kind)(command)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that runs demos takes; it gets `shapes` and `limits`."""

    @functools.wraps(command)
    def with_limits(standby: float, **options: Any) -> Any:
        isolation.stand_by(standby)
        limits = Limits(**{name: options.pop(name) for name in NAMES})
        return command(limits=limits, **options)

    return functools.reduce(lambda done, option: option(done), _RUN_OPTIONS, with_limits)


_RUN_OPTIONS = [
    click.option(
        "--standby",
        type=_Number(min=0),
        default=0,
        metavar="SECONDS",
        help="Leave the process that demos are forked from to a call within so many seconds.",
    ),
    click.option("--shapes/--no-shapes", default=True, help="Record the tensors' shapes."),
    *(
        click.option(
            f"--{name.replace('_', '-')}",
            type=_Number(min=0, min_open=True),
            default=getattr(DEFAULTS, name),
            show_default=True,
            help=f"{what} that one demo may use, unless its page says otherwise.",
        )
        for name, what in (
            ("output", "MB of output"),
            ("memory", "MB of memory"),
            ("cpu_time", "Seconds of processor time"),
            ("timeout", "Seconds"),
        )
    ),
]


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Annotated Python modules become pages that prove themselves."""
    for name in ("SIGHUP", "SIGTERM"):
        number = getattr(signal, name, None)  # there is no SIGHUP on Windows
        if number and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, leave)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text


@main.command(epilog=example("marginalia rows papers/attention/squeeze_excitation.py"))
@source_argument
def rows(file: Path) -> None:
    """Print the rows of FILE as JSON: prose beside code.

    A list of {"start", "end", "kind", "prose", "code", "source"}; lines count from 1, "end" is
    inclusive, and joining every "source" gives the file.
    """
    keys = ("start", "end", "kind", "prose", "code", "source")
    found = parse(read_source(file), file)
    _print_json([{key: getattr(row, key) for key in keys} for row in found])


@main.command(epilog=example("marginalia run papers/attention/squeeze_excitation.py --json"))
@source_argument
@click.option("--json", "as_json", is_flag=True, help="Print everything that was recorded.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder on the import path. Default: the papers folder that holds FILE, else its own.",
)
@run_options
@click.pass_context
def run(
    ctx: click.Context, file: Path, as_json: bool, root: Path | None, limits: Limits, shapes: bool
) -> None:
    """Run the demo of FILE in a process of its own; show its output and its claims."""
    parse(read_source(file), file)  # a syntax error is reported before a process starts
    root = (root or scaffold.find_root(file)).resolve()
    job = _job(file, root, limits, shapes)
    result = run_isolated(job)
    if as_json:
        page = _report(file, job, result).to_json()
        _print_json({"version": __version__, **page, **result.to_json()})
    else:
        _print_result(file, result)
    ctx.exit(0 if result.ok else FAILED)


@main.command(
    epilog=example("marginalia snippet papers/attention/squeeze_excitation.py se_resnet50")
)
@source_argument
@click.argument("symbol")
def snippet(file: Path, symbol: str) -> None:
    """Print SYMBOL of FILE with exactly the imports and definitions it needs, ready to paste."""
    text = runnable(read_source(file), symbol, path=file, root=scaffold.find_root(file))
    click.echo(text, nl=False)


@main.command(epilog=example("marginalia build my_modules -o site"))
@folder_argument
@click.option(
    "-o", "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The site."
)
@click.option("--json", "as_json", is_flag=True, help="Print what happened to each page.")
@click.option("--workers", type=click.IntRange(min=1), help="Demos at once. Default: the cores.")
@click.option(
    "--executor", type=click.Choice(["local", "dask"]), default="local", help="Who runs demos."
)
@click.option("--scheduler", default="", metavar="ADDRESS", help="For dask: tcp://HOST:PORT.")
@run_options
@click.pass_context
def build(
    ctx: click.Context,
    folder: Path,
    out: Path,
    as_json: bool,
    workers: int | None,
    executor: str,
    scheduler: str,
    limits: Limits,
    shapes: bool,
) -> None:
    """Build a site from the modules in DIR, with no configuration.

    DIR is on the import path, so its modules may import each other.
    """
    from marginalia import standalone

    settings = standalone.Settings(
        folder=folder.resolve(),
        out=out.resolve(),
        workers=workers or default_workers(),
        limits=limits,
        shapes=shapes,
        executor=executor,
        scheduler=scheduler,
    )
    report = standalone.build(settings, quiet=as_json)
    if as_json:
        _print_json(report.to_json())
    else:
        click.echo(f"{len(report.pages)} pages in {out}, {report.seconds:.1f} s")
    ctx.exit(FAILED if report.failed else 0)


@main.command(epilog=example("marginalia serve my_modules --port 8001"))
@folder_argument
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Demos at once. Default: the cores.")
@run_options
def serve(folder: Path, port: int, workers: int | None, limits: Limits, shapes: bool) -> None:
    """Serve the modules in DIR as a site and reload it on every save."""
    from marginalia import standalone

    settings = standalone.Settings(
        folder=folder.resolve(),
        out=None,
        workers=workers or default_workers(),
        limits=limits,
        shapes=shapes,
    )
    standalone.serve(settings, port=port)


@main.command(epilog=example("marginalia new attention/linear_attention"))
@click.argument("name", metavar="TOPIC/SLUG")
@click.option(
    "--papers",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("papers"),
    show_default=True,
    help="The folder of modules.",
)
@click.pass_context
def new(ctx: click.Context, name: str, papers: Path) -> None:
    """Start a paper: a module that already runs, with the front matter to fill in."""
    try:
        path = scaffold.create(papers, name)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx=ctx, param_hint="TOPIC/SLUG") from error
    click.echo(f"{path} is ready: fill it in while `make serve` shows it.")


@main.command(epilog=example("marginalia check papers/attention"))
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what `build --json` prints.")
@run_options
@click.pass_context
def check(
    ctx: click.Context, paths: tuple[Path, ...], as_json: bool, limits: Limits, shapes: bool
) -> None:
    """Check modules: they parse, their front matter is right, their demos run, their claims hold.

    PATHS are files or folders; without any, the folder papers.
    """
    files = list(_modules(paths or (Path("papers"),)))
    if not files:
        raise click.UsageError("no module found; name files or folders to check")
    report, start = Report(workers=1), time.perf_counter()
    for file in files:
        page, problem = _checked(file, limits, shapes)
        report.pages.append(page)
        if not as_json:
            status = "ok" if page.status == "ran" else page.status
            click.echo(f"{status:8}{file}" + (f"\n{problem}" if problem else ""))
    report.seconds = time.perf_counter() - start
    if as_json:
        _print_json(report.to_json())
    else:
        click.echo(f"{report.totals['ran']} of {len(files)} modules are right")
    ctx.exit(FAILED if report.failed else 0)


def _modules(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if not path.exists():
            raise click.UsageError(f"no folder {path} here; name files or folders to check")
        yield from discover(path) if path.is_dir() else [path]


def _checked(file: Path, limits: Limits, shapes: bool) -> tuple[PageReport, str]:
    """What became of a module, and in words what is wrong with it."""
    root = scaffold.find_root(file).resolve()
    try:
        parse(read_source(file), file)
        job = _job(file, root, limits, shapes)
    except (MarginaliaError, OSError) as error:
        url, failures = _url(file.resolve(), root), (failure_of(error),)
        return PageReport(file.as_posix(), url, "failed", failures=failures), str(error)
    if job.device == "cuda" and device_kind() != "cuda":
        page = _report(file, job, Result(True), "skipped")
        return page, "  its demo needs a GPU, and this machine has none"
    result = run_isolated(job)
    return _report(file, job, result), "" if result.ok else _failure(file, result)


def _report(file: Path, job: Job, result: Result, status: Status | None = None) -> PageReport:
    """What became of a module that this command ran, named as the user named it."""
    ran = Ran(job, result, status or ("ran" if result.ok else "failed"))
    return PageReport.of(file.as_posix(), _url(job.path, job.root), ran)


def _url(path: Path, root: Path) -> str:
    """The page that a module has on a site of its root."""
    return url_of(path, root if path.is_relative_to(root) else path.parent)


def _job(file: Path, root: Path, limits: Limits, shapes: bool) -> Job:
    path = file.resolve()
    return Job.of(load(path, path.parent), root, limits, shapes=shapes)


def _failure(file: Path, result: Result) -> str:
    error = result.error
    if error is None:
        return f"{file}: the demo failed"
    frames = [f"  {file}:{f['line']} in {f['function']}\n    {f['text']}" for f in error.frames]
    return "\n".join([*frames, f"{file}:{error.line}: {error.type}: {error.message}"])


def _print_result(file: Path, result: Result) -> None:
    for output in result.outputs:
        text = output.data.get("text/plain")
        if output.kind in ("stdout", "stderr", "warning", "value") and text:
            click.echo(text.rstrip("\n"))
        else:
            click.echo(f"[{output.kind}, line {output.line}]")
    for claim in result.claims:
        mark = "✓" if claim.ok else "✗"
        source = f"  ({claim.source})" if claim.source else ""
        click.echo(f"{mark} line {claim.line}: {claim.text}{source}")
    if result.ok:
        click.echo(f"ran in {result.seconds:.2f} s on {result.device}")
    else:
        click.echo(_failure(file, result), err=True)


def _print_json(data: Any) -> None:
    click.echo(json_text(data))  # at once, so that a pipe that is closed is met here


if __name__ == "__main__":
    main()
