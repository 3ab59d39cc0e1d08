import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ecotone_fastapi.core.endpoint import (
    Endpoint,
    Inline,
    Kind,
    command_handler,
    discover,
    event_handler,
    internal_handler,
    mark,
    marks_of,
    query_handler,
)
from ecotone_fastapi.core.errors import ConfigurationError


def only(*sources: object) -> Endpoint:
    [endpoint] = discover(sources).endpoints
    return endpoint


# ---------------------------------------------------------------------------------------------------------------- marks


def test_a_mark_is_all_that_a_decorator_leaves_behind() -> None:
    def handler() -> None: ...

    assert mark("careful")(handler) is handler
    assert marks_of(handler) == ("careful",)


def test_the_mark_of_the_topmost_decorator_comes_first() -> None:
    @mark("outer")
    @mark("inner")
    def handler() -> None: ...

    assert marks_of(handler) == ("outer", "inner")


def test_a_class_does_not_inherit_the_marks_of_its_base() -> None:
    @mark("base")
    class Base: ...

    @mark("derived")
    class Derived(Base): ...

    assert marks_of(Base) == ("base",)
    assert marks_of(Derived) == ("derived",)
    assert marks_of(type("Plain", (Base,), {})) == ()


def test_a_handler_finds_its_own_mark_before_that_of_its_class() -> None:
    class Role(str): ...

    @mark(Role("clerk"))
    @mark(7)
    class Orders:
        @mark(Role("manager"))
        @command_handler
        async def place(self, command: dict[str, Any]) -> None: ...

        @command_handler("order.cancel")
        async def cancel(self, order_id: str) -> None: ...

    place, cancel = discover([Orders]).endpoints

    assert (place.find(Role), cancel.find(Role), place.find(int)) == ("manager", "clerk", 7)
    assert place.find(Inline) is None
    assert place.marks == ("manager", "clerk", 7)


# ----------------------------------------------------------------------------------------------------------- decorators

DECORATORS: list[tuple[Callable[..., Any], Kind]] = [
    (command_handler, Kind.COMMAND),
    (query_handler, Kind.QUERY),
    (event_handler, Kind.EVENT),
    (internal_handler, Kind.INTERNAL),
]


@pytest.mark.parametrize(("decorator", "kind"), DECORATORS)
def test_a_decorator_may_stand_without_brackets_with_empty_ones_and_with_a_key(
    decorator: Callable[..., Any], kind: Kind
) -> None:
    @decorator
    async def bare(payload: dict[str, Any]) -> None: ...

    @decorator()
    async def empty(payload: dict[str, Any]) -> None: ...

    @decorator("some.key", id="some-id", dependencies=["a dependency"])
    async def full(payload: dict[str, Any]) -> None: ...

    endpoints = discover([bare, empty, full]).endpoints

    assert [one.kind for one in endpoints] == [kind] * 3
    assert [one.route for one in endpoints] == [None, None, "some.key"]
    assert endpoints[0].id == f"{__name__}.{bare.__qualname__}"
    assert endpoints[1].id == f"{__name__}.{empty.__qualname__}"
    assert endpoints[2].id == "some-id"
    assert [one.dependencies for one in endpoints] == [(), (), ("a dependency",)]
    assert [one.function for one in endpoints] == [bare, empty, full]
    assert [one.payload_type for one in endpoints] == [None] * 3


def test_a_handler_is_still_the_function_that_was_written() -> None:
    @query_handler("double")
    def double(number: int) -> int:
        return 2 * number

    assert double(21) == 42


def test_an_event_handler_has_a_priority() -> None:
    @event_handler("order.*", priority=5)
    async def first(event: dict[str, Any]) -> None: ...

    @event_handler
    async def then(event: dict[str, Any]) -> None: ...

    assert [one.priority for one in discover([first, then]).endpoints] == [5, 1]


def test_only_string_annotations_keep_the_names_around_them_alive() -> None:
    class Local: ...

    @command_handler
    async def evaluated(command: Local) -> None: ...

    @command_handler
    async def text(command: "Local") -> None: ...

    assert only(evaluated).names == {}
    assert only(text).names["Local"] is Local


def test_an_annotation_that_cannot_be_evaluated_yet_keeps_the_names_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_name_error(function: object) -> dict[str, Any]:
        raise NameError("Later")

    class Local: ...

    with monkeypatch.context() as patch:
        patch.setattr("inspect.get_annotations", raise_name_error)

        @command_handler
        async def late(command: Local) -> None: ...

    assert only(late).names["Local"] is Local


def test_the_names_of_all_functions_around_a_handler_are_known_the_nearest_first() -> None:
    Outer = Shadowed = 1  # noqa: N806

    def make() -> Any:
        Inner, Shadowed = 2, 3  # noqa: N806

        @command_handler
        async def handler(command: "Any") -> tuple[int, ...]:
            return Inner, Shadowed

        return handler

    names = only(make()).names

    assert (Outer, Shadowed) == (1, 1)
    assert (names["Inner"], names["Shadowed"], names["Outer"]) == (2, 3, 1)


# ----------------------------------------------------------------------------------------------------------- on a class


class Orders:
    """Handlers of every form."""

    @command_handler("place")
    async def place(self, order_id: str) -> str:
        return f"{type(self).__name__} {order_id}"

    @classmethod
    @command_handler("inside classmethod")
    async def inside_classmethod(cls, order_id: str) -> str:
        return f"{cls.__name__} {order_id}"

    @command_handler("outside classmethod")  # type: ignore[arg-type]
    @classmethod
    async def outside_classmethod(cls, order_id: str) -> str:
        return f"{cls.__name__} {order_id}"

    @staticmethod
    @command_handler("inside staticmethod")
    async def inside_staticmethod(order_id: str) -> str:
        return order_id

    @command_handler("outside staticmethod")
    @staticmethod
    async def outside_staticmethod(order_id: str) -> str:
        return order_id

    @mark("outside")
    @classmethod
    @mark("inside")
    @command_handler("marked on both sides")
    async def both(cls, order_id: str) -> str:
        return order_id

    def no_handler(self) -> None: ...


async def test_methods_class_methods_and_static_methods_are_found_whatever_stands_above() -> None:
    found = {one.route: one for one in discover([Orders]).endpoints}

    assert list(found) == [
        "place",
        "inside classmethod",
        "outside classmethod",
        "inside staticmethod",
        "outside staticmethod",
        "marked on both sides",
    ]
    assert [one.needs_instance for one in found.values()] == [True, False, False, False, False, False]
    assert {one.owner for one in found.values()} == {Orders}
    assert await found["place"].function(Orders(), "1") == "Orders 1"
    for form in ("inside", "outside"):
        assert await found[f"{form} classmethod"].function("1") == "Orders 1"
        assert await found[f"{form} staticmethod"].function("1") == "1"
    assert found["marked on both sides"].marks == ("outside", "inside")


def test_an_id_is_derived_from_module_class_and_method() -> None:
    endpoints = discover([Orders]).endpoints

    assert endpoints[0].id == f"{__name__}.Orders.place"
    assert endpoints[2].id == f"{__name__}.Orders.outside_classmethod"
    assert endpoints[0].label == "Orders.place"


def test_a_class_inherits_the_handlers_of_its_base_under_its_own_name() -> None:
    class Rush(Orders):
        @command_handler("place quickly")
        async def place(self, order_id: str) -> str:
            return "quickly"

        async def inside_classmethod(self, order_id: str) -> str:  # type: ignore[override]
            return "no handler any more"

    found = {one.route: one for one in discover([Rush]).endpoints}

    assert list(found) == [
        "place quickly",
        "outside classmethod",
        "inside staticmethod",
        "outside staticmethod",
        "marked on both sides",
    ]
    assert {one.owner for one in found.values()} == {Rush}
    assert found["place quickly"].id == f"{__name__}.{Rush.__qualname__}.place"


async def test_an_inherited_class_method_belongs_to_the_class_that_inherited_it() -> None:
    class Rush(Orders): ...

    [endpoint] = [one for one in discover([Rush]).endpoints if one.route == "outside classmethod"]

    assert await endpoint.function("1") == "Rush 1"


def test_one_function_may_handle_several_messages() -> None:
    class Mailer:
        @event_handler("order.placed")
        @event_handler("order.cancelled", id="cancelled")
        @command_handler
        async def mail(self, payload: dict[str, Any]) -> None: ...

    endpoints = discover([Mailer]).endpoints
    own = f"{__name__}.{Mailer.__qualname__}.mail"

    assert [(one.kind, one.route, one.id) for one in endpoints] == [
        (Kind.EVENT, "order.placed", f"{own}:order.placed"),
        (Kind.EVENT, "order.cancelled", "cancelled"),
        (Kind.COMMAND, None, own),
    ]


# -------------------------------------------------------------------------------------------------------- other sources


def test_an_instance_is_used_as_it_is() -> None:
    orders = Orders()

    found = discover([orders])

    assert found.instances == {Orders: orders}
    assert [one.owner for one in found.endpoints] == [Orders] * 6


def test_functions_bound_methods_and_callables_are_handlers_on_their_own() -> None:
    @command_handler("function")
    async def function(order_id: str) -> None: ...

    orders = Orders()

    endpoints = discover([function, orders.place, Orders.inside_classmethod]).endpoints

    assert [(one.route, one.owner, one.needs_instance) for one in endpoints] == [
        ("function", None, False),
        ("place", None, False),
        ("inside classmethod", Orders, False),
    ]
    assert [one.label for one in endpoints] == ["function", "place", "Orders.inside_classmethod"]


def test_a_callable_without_a_name_is_named_after_its_class() -> None:
    partial = mark("marked")(functools.partial(print))
    command_handler("print")(partial)

    endpoint = only(partial)

    assert endpoint.id == "functools.partial"
    assert endpoint.label == "functools.partial"
    assert endpoint.marks == ("marked",)


def test_a_handler_that_is_given_twice_counts_once() -> None:
    assert len(discover([Orders, Orders, Orders()]).endpoints) == 6


@pytest.mark.parametrize("source", [object, object(), print, lambda: None, 5])
def test_what_has_no_handler_is_a_mistake(source: object) -> None:
    with pytest.raises(ConfigurationError, match="has no handler"):
        discover([source])


def test_an_object_that_answers_everything_is_no_handler() -> None:
    class Anything:
        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self) -> None: ...

    with pytest.raises(ConfigurationError, match="has no handler"):
        discover([Anything()])


# ------------------------------------------------------------------------------------------------- modules and packages


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package on the import path."""
    files = {
        "__init__.py": "",
        "__main__.py": "raise AssertionError('a program is not imported')",
        "orders.py": """
            from ecotone_fastapi.core.endpoint import command_handler, query_handler

            class Orders:
                @command_handler("order.place")
                async def place(self, order_id: str) -> None: ...

            @query_handler("order.count")
            async def count() -> int:
                return 0

            class NoHandler: ...
            ORDERS = Orders()
            """,
        "again.py": "from shop.orders import Orders, count",
        "mail/__init__.py": "",
        "mail/sender.py": """
            from ecotone_fastapi.core.endpoint import event_handler

            @event_handler("order.placed")
            async def send(order_id: str) -> None: ...
            """,
    }
    for name, text in files.items():
        file = tmp_path / "shop" / name
        file.parent.mkdir(exist_ok=True)
        lines = text.splitlines()
        file.write_text("\n".join(line.removeprefix(" " * 12) for line in lines))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path / "shop"
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def routes(*sources: object) -> list[str | None]:
    return [one.route for one in discover(sources).endpoints]


@pytest.mark.usefixtures("shop")
def test_a_module_is_searched_for_what_is_defined_in_it() -> None:
    assert routes(importlib.import_module("shop.orders")) == ["order.place", "order.count"]
    assert routes("shop.orders") == ["order.place", "order.count"]
    assert routes("shop.again") == []


@pytest.mark.usefixtures("shop")
def test_a_package_is_searched_with_all_its_modules() -> None:
    expected = ["order.place", "order.count", "order.placed"]

    assert sorted(map(str, routes("shop"))) == sorted(expected)
    assert sorted(map(str, routes(importlib.import_module("shop")))) == sorted(expected)
    assert sorted(map(str, routes("shop", "shop.orders"))) == sorted(expected)


def test_a_module_made_by_hand_is_searched_like_any_other() -> None:
    module = types.ModuleType("by_hand")

    assert routes(module) == []


def test_a_module_that_is_not_there_is_a_mistake_in_the_wiring() -> None:
    with pytest.raises(ConfigurationError, match="'no_such_module' with handlers cannot be imported") as raised:
        discover(["no_such_module"])

    assert isinstance(raised.value.__cause__, ModuleNotFoundError)


def test_a_module_of_a_package_that_cannot_be_imported_is_not_passed_over(shop: Path) -> None:
    (shop / "broken.py").write_text("import no_such_module")
    importlib.invalidate_caches()

    with pytest.raises(ConfigurationError, match=r"'shop\.broken' of the package 'shop' cannot be imported") as raised:
        discover(["shop"])

    assert isinstance(raised.value.__cause__, ImportError)


def test_a_package_inside_that_cannot_be_imported_is_not_passed_over(shop: Path) -> None:
    (shop / "mail" / "__init__.py").write_text("import no_such_module")
    importlib.invalidate_caches()

    with pytest.raises(ConfigurationError, match=r"'shop\.mail' of the package 'shop' cannot be imported"):
        discover(["shop"])
