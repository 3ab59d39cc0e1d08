"""How the application is found, and what is said when it is not."""

import json

import pytest

from tests.cli.conftest import Project


@pytest.fixture
def small(project: Project) -> Project:
    project.write(
        "small.py",
        """
        from fastapi import FastAPI

        from ecotone_fastapi import Ecotone, query_handler


        @query_handler("greet")
        def greet(name: str) -> str:
            return name


        class settings:
            class inner:
                ecotone = Ecotone([greet])


        ecotone = Ecotone([greet])
        app = FastAPI()
        ecotone.install(app)

        other = Ecotone([greet])
        started_later = FastAPI(lifespan=other.lifespan)


        def make() -> Ecotone:
            return Ecotone([greet])


        def make_app() -> FastAPI:
            made = FastAPI()
            make().install(made)
            return made


        def break_down() -> Ecotone:
            raise LookupError("no settings")


        number = 3
        """,
    )
    return project


@pytest.mark.parametrize("address", ["small:ecotone", "small:app", "small:settings.inner.ecotone"])
def test_an_address_names_an_ecotone_or_an_application_with_one(small: Project, address: str) -> None:
    result = small.ecotone("list", address, "--json")

    assert result.exit_code == 0
    assert [one["label"] for one in json.loads(result.stdout)["handlers"]] == ["greet"]


@pytest.mark.parametrize("address", ["small:make", "small:make_app"])
def test_an_address_names_a_factory(small: Project, address: str) -> None:
    assert "greet" in small.ecotone("list", address, "--factory").stdout
    assert "greet" in small.ecotone("list", address, ECOTONE_FACTORY="1").stdout


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("small:started_later", "no Ecotone is installed in the FastAPI application small:started_later"),
        ("small:started_later", "name the Ecotone object itself: small:ecotone or small:other"),
        ("small:make", "if it makes the application, say so with --factory"),
        ("small:nothing", "small has no 'nothing'"),
        ("small:ecotone.nothing", "small has no 'ecotone.nothing'"),
        ("small:number", "small:number is an object of the class int, neither an Ecotone nor a FastAPI application"),
        ("small", "'small' does not name an application"),
        ("missing:app", "there is no module 'missing'"),
        ("missing.part:app", "there is no module 'missing'"),
        ("small.part:app", "there is no module 'small.part'"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_with_what_to_do(small: Project, address: str, expected: str) -> None:
    result = small.ecotone("list", address)

    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("small:break_down", "small:break_down() failed: LookupError: no settings\n  in "),
        ("small:number", "small:number is no function"),
        ("small:dict", "small has no 'dict'"),
    ],
)
def test_a_factory_that_fails_is_reported(small: Project, address: str, expected: str) -> None:
    result = small.ecotone("list", address, "--factory")

    assert result.exit_code == 2
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("from json import nothing", "ImportError: cannot import name 'nothing' from 'json'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError: "),
    ],
)
def test_a_module_that_cannot_be_imported_is_reported_with_the_cause_and_its_place(
    project: Project, text: str, expected: str
) -> None:
    project.write("broken.py", text)

    result = project.ecotone("list", "broken:ecotone")

    assert result.exit_code == 2
    assert "importing broken failed" in result.stderr
    assert expected in result.stderr
    assert "broken.py" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_wrong_with_the_wiring_is_shown_without_a_traceback(project: Project) -> None:
    project.write(
        "wrong.py",
        """
        from ecotone_fastapi import Ecotone, asynchronous, command_handler


        @asynchronous("nowhere")
        @command_handler("one")
        async def one(command: str, needed: bytes) -> None: ...


        ecotone = Ecotone([one])
        """,
    )

    result = project.ecotone("list", "wrong:ecotone")

    assert result.exit_code == 2
    assert "UnresolvableParameterError: one" in result.stderr
    assert "needed: bytes" in result.stderr
    assert "UnknownChannelError: one: there is no channel 'nowhere'" in result.stderr
    assert "Hint: " in result.stderr
    assert "Traceback" not in result.stderr


def test_without_an_application_the_ways_to_name_one_are_told(project: Project) -> None:
    for command in ("run", "list", "explain", "migrate"):
        result = project.ecotone(command)

        assert result.exit_code == 2
        assert "no application is named" in result.stderr
        assert "ECOTONE_APP" in result.stderr
        assert "[tool.ecotone]" in result.stderr


def test_the_application_is_configured_in_pyproject_toml(shop: Project) -> None:
    shop.write("pyproject.toml", '[tool.ecotone]\napp = "shop:ecotone"\n')

    assert "notifications" in shop.ecotone("list").stdout
    assert "place_order" in shop.ecotone("explain", "place_order").stdout
    assert shop.ecotone("run", "notifications", "--until-empty").exit_code == 0


def test_a_factory_is_configured_in_pyproject_toml(small: Project) -> None:
    small.write("pyproject.toml", '[tool.ecotone]\napp = "small:make"\nfactory = true\n')

    assert "greet" in small.ecotone("list").stdout


def test_the_environment_beats_pyproject_toml_and_an_argument_beats_both(shop: Project, small: Project) -> None:
    shop.write("pyproject.toml", '[tool.ecotone]\napp = "missing:app"\n')

    assert "notifications" in shop.ecotone("list", ECOTONE_APP="shop:ecotone").stdout
    assert "greet" in shop.ecotone("list", "small:ecotone", ECOTONE_APP="shop:ecotone").stdout
    assert "get_status" in shop.ecotone("explain", "shop:ecotone", "get_status", ECOTONE_APP="small:ecotone").stdout
    assert "get_status" in shop.ecotone("explain", "get_status", "--app", "shop:ecotone").stdout


def test_a_pyproject_toml_that_cannot_be_read_is_reported(project: Project) -> None:
    project.write("pyproject.toml", "[tool")

    result = project.ecotone("list")

    assert result.exit_code == 2
    assert "pyproject.toml of this directory cannot be read" in result.stderr


def test_a_pyproject_toml_about_something_else_says_nothing(project: Project) -> None:
    project.write("pyproject.toml", "[tool]\necotone = 3\n")

    assert "no application is named" in project.ecotone("list").stderr
