"""Which application a command is about, and how it is found: `module:name`, as uvicorn and FastAPI take it."""

import asyncio
import contextlib
import importlib
import os
import re
import sys
import tomllib
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer
from fastapi import FastAPI

from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.cli.output import only_json
from ecotone_fastapi.core.errors import ConfigurationError, EcotoneError
from ecotone_fastapi.web.edge import KEY

T = TypeVar("T")

_ADDRESS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_VARIABLE = "ECOTONE_APP"
_HOW_TO_NAME_ONE = (
    f'name it as module:name, e.g. shop.main:ecotone, or set {_VARIABLE}, or write app = "shop.main:ecotone" under '
    "[tool.ecotone] in the pyproject.toml of this directory"
)

AppArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[APP]",
        help="The application, as module:name of an Ecotone or of a FastAPI application in which one is installed. "
        f"Where it is not given: {_VARIABLE}, else app in the table tool.ecotone of pyproject.toml.",
        show_default=False,
    ),
]
"""Where the application is the only argument."""


def app_and(others: str = "", told: str = "") -> Any:
    """Return the argument for the application where other arguments may follow.

    Args:
        others: The others, as the usage shows them.
        told: What they are.
    """
    then = f"; then {told}" if told else ""
    return typer.Argument(
        metavar=f"[APP] {others}".rstrip(),
        help=f"The application, as module:name, unless it is configured{then}.",
        show_default=False,
    )


AppOption = Annotated[
    str | None,
    typer.Option(
        "--app", metavar="APP", help="The application; then all arguments are something else.", show_default=False
    ),
]
"""The application where other arguments follow."""

FactoryOption = Annotated[
    bool,
    typer.Option(
        "--factory", envvar="ECOTONE_FACTORY", help="APP is a function without arguments that makes the application."
    ),
]
"""Whether the application has to be made."""


def _for_machines(context: typer.Context, wanted: bool) -> bool:
    if wanted:
        # Of the whole command, so that errors are told in the same way.
        context.find_root().with_resource(only_json())
    return wanted


JsonOption = Annotated[
    bool, typer.Option("--json", callback=_for_machines, help="Print one JSON document for machines, errors included.")
]
"""Whether the answer is for machines."""

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
"""Whether nobody is asked first."""


class Address(NamedTuple):
    """Where an application is.

    Args:
        text: `module:name`.
        factory: Whether it names a function that makes it.
    """

    text: str
    factory: bool = False


def address_and_rest(arguments: Sequence[str], app: str | None, *, factory: bool) -> tuple[Address, Sequence[str]]:
    """Tell the application from the other arguments: it comes first and looks like `module:name`, or is configured.

    Args:
        arguments: All arguments.
        app: What `--app` says.
        factory: What `--factory` says.

    Raises:
        ConfigurationError: No application is named.
    """
    if app is not None:
        return Address(app, factory), arguments
    if arguments and _ADDRESS.fullmatch(arguments[0]):
        return Address(arguments[0], factory), arguments[1:]
    return _configured(factory=factory, instead_of=arguments[0] if arguments else None), arguments


def address_of(app: str | None, *, factory: bool) -> Address:
    """Return where the application is.

    Args:
        app: What the command line says.
        factory: What `--factory` says.

    Raises:
        ConfigurationError: No application is named.
    """
    return Address(app, factory) if app is not None else _configured(factory=factory)


def is_configured() -> bool:
    """Whether there is an application although the command line names none."""
    return bool(os.environ.get(_VARIABLE)) or "app" in _settings()


def _configured(*, factory: bool, instead_of: str | None = None) -> Address:
    from_environment = os.environ.get(_VARIABLE)
    if from_environment:
        return Address(from_environment, factory)
    settings = _settings()
    if "app" in settings:
        return Address(str(settings["app"]), factory or bool(settings.get("factory")))
    what = "no application is named" if instead_of is None else f"{instead_of!r} does not name an application"
    raise ConfigurationError(what, hint=_HOW_TO_NAME_ONE)


def _settings() -> dict[str, Any]:
    try:
        content = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the pyproject.toml of this directory cannot be read: {error}") from error
    settings = content.get("tool", {}).get("ecotone", {})
    return settings if isinstance(settings, dict) else {}


def load(address: Address, *, quiet: bool = False) -> Ecotone:
    """Import the application, put it together and check it.

    Args:
        address: Where it is.
        quiet: Whether what it prints meanwhile goes to the standard error, since the standard output is for a machine.

    Raises:
        ConfigurationError: It is not there, cannot be imported, or is wired wrongly.
    """
    ecotone = found_at(address, quiet=quiet)
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        ecotone.prepare()
    return ecotone


def found_at(address: Address, *, quiet: bool = False) -> Ecotone:
    """Import the application, and do not put it together yet.

    Args:
        address: Where it is.
        quiet: Whether what it prints meanwhile goes to the standard error, since the standard output is for a machine.

    Raises:
        ConfigurationError: It is not there, or cannot be imported.
    """
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        return _ecotone_at(address)


def _ecotone_at(address: Address) -> Ecotone:
    if not _ADDRESS.fullmatch(address.text):
        raise ConfigurationError(f"{address.text!r} does not name an application", hint=_HOW_TO_NAME_ONE)
    module_name, _, path = address.text.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    module = _import(module_name)
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigurationError(f"{module_name} has no {path!r}", hint=_advice(module_name, module))
        found = getattr(found, name)
    if address.factory:
        found = _make(address.text, found)
    if isinstance(found, FastAPI):
        installed = getattr(found.state, KEY, None)
        if not isinstance(installed, Ecotone):
            raise ConfigurationError(
                f"no Ecotone is installed in the FastAPI application {address.text}",
                hint="call ecotone.install(app); or, where it comes with FastAPI(lifespan=ecotone.lifespan), "
                + _advice(module_name, module),
            )
        return installed
    if isinstance(found, Ecotone):
        return found
    if callable(found) and not address.factory and not isinstance(found, type):
        raise ConfigurationError(
            f"{address.text} is a function", hint="if it makes the application, say so with --factory"
        )
    raise ConfigurationError(
        f"{address.text} is {'made into ' if address.factory else ''}an object of the class {type(found).__name__}, "
        "neither an Ecotone nor a FastAPI application",
        hint=_advice(module_name, module),
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except EcotoneError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"there is no module {error.name!r}", hint=f"modules are looked for in {Path.cwd()} and on PYTHONPATH"
            ) from error
        raise _failed(f"importing {name}", error) from error
    except (Exception, SystemExit) as error:
        raise _failed(f"importing {name}", error) from error


def _make(text: str, factory: Callable[[], Any]) -> Any:
    if not callable(factory):
        raise ConfigurationError(f"{text} is no function", hint="leave --factory out")
    try:
        return factory()
    except EcotoneError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(f"{text}()", error) from error


def _failed(doing: str, error: BaseException) -> ConfigurationError:
    """The failure of the application's own code, in one line with its place."""
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename not in (__file__, importlib.__file__)
    ]
    place = f"\n  in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return ConfigurationError(f"{doing} failed: {text}{place}")


def _advice(module_name: str, module: object) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Ecotone)]
    if not names:
        return "name the Ecotone object itself: module:name"
    return "name the Ecotone object itself: " + " or ".join(f"{module_name}:{name}" for name in names)


def within(ecotone: Ecotone, work: Callable[[], Awaitable[T]], *, patient: bool = True) -> T:
    """Open an application without its consumers, do something, and close it.

    Args:
        ecotone: The application.
        work: What is done.
        patient: Whether a broker that is down keeps nobody from it.
    """

    async def run() -> T:
        async with ecotone.running(consumers=False, patient=patient):
            return await work()

    return asyncio.run(run())
