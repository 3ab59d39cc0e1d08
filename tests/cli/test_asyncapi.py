"""`ecotone asyncapi`: the document as JSON, printed or in a file."""

import json

from tests.cli.conftest import Project


def test_the_document_is_printed(shop: Project) -> None:
    result = shop.ecotone("asyncapi", "shop:ecotone", "--title", "The shop", "--version", "1.2.0")

    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["asyncapi"] == "3.0.0"
    assert (document["info"]["title"], document["info"]["version"]) == ("The shop", "1.2.0")
    assert list(document["channels"]) == ["notifications"]
    assert list(document["components"]["messages"]) == ["notify-customer"]


def test_the_document_is_written_to_a_file(shop: Project) -> None:
    result = shop.ecotone("asyncapi", "shop:ecotone", "--output", "asyncapi.json")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "asyncapi.json: 1 channels, 1 messages\n"
    written = (shop.directory / "asyncapi.json").read_text("utf-8")
    assert written.endswith("}\n")
    assert json.loads(written) == json.loads(shop.ecotone("asyncapi", "shop:ecotone").stdout)


def test_the_name_is_that_of_the_fastapi_application(shop: Project) -> None:
    shop.write(
        "web.py",
        """
        from fastapi import FastAPI

        from shop import ecotone

        app = FastAPI(title="The web shop", version="7.0")
        ecotone.install(app)
        """,
    )

    info = json.loads(shop.ecotone("asyncapi", "web:app").stdout)["info"]

    assert (info["title"], info["version"]) == ("The web shop", "7.0")


def test_a_file_that_cannot_be_written_is_told(shop: Project) -> None:
    result = shop.ecotone("asyncapi", "shop:ecotone", "-o", "nowhere/asyncapi.json")

    assert result.exit_code == 2
    assert "nowhere/asyncapi.json cannot be written: No such file or directory" in result.stderr


def test_what_an_application_prints_is_no_part_of_the_document(shop: Project) -> None:
    shop.write("noisy.py", "from shop import ecotone\nprint('hello')\n")

    result = shop.ecotone("asyncapi", "noisy:ecotone")

    assert json.loads(result.stdout)["asyncapi"] == "3.0.0"
    assert "hello" in result.stderr
