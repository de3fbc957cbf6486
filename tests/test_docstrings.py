"""What a room exports is documented whole and shows itself once; what is inside it says one line.

Exported: the names in a package's ``__all__``, those of a module that stands in one, and the public
names of a module without ``__all__`` that lies directly in ``fedlearn/``; of some of these, the
front door shows what is for users. The examples are run
elsewhere: `pytest --doctest-modules fedlearn`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil

import pytest

import fedlearn

RECORDS = (tuple, Warning, Exception, int)  # named tuples, errors, enumerations: fields, no example
INSIDE = {
    f"fedlearn.{m}" for m in ("checks", "checkpoint", "recipe", "loop")
}  # see fedlearn itself
OPTIONAL = {"flwr", "ipywidgets", "anywidget"}


def modules():
    yield fedlearn
    for found in pkgutil.walk_packages(fedlearn.__path__, "fedlearn."):
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as e:  # an extra that isn't installed
            if (e.name or "").split(".")[0] not in OPTIONAL:
                raise


def defined(module) -> dict[str, object]:
    """Its public functions and classes, by their full names."""
    found = {
        f"{module.__name__}.{name}": thing
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    return {k: f for k, f in found.items() if inspect.isfunction(f) or inspect.isclass(f)}


def public():
    """(name, object) of every public function, class and method defined in the package."""
    for module in modules():
        for name, thing in defined(module).items():
            yield name, thing
            for method, f in vars(thing).items() if inspect.isclass(thing) else ():
                if inspect.isfunction(f) and not method.startswith("_"):
                    yield f"{name}.{method}", f


def exported():
    """Full names of what the rooms, and the files outside them, show to others."""
    for module in modules():
        offers = getattr(module, "__all__", None)
        if offers is None and module.__name__.count(".") == 1 and module.__name__ not in INSIDE:
            yield from defined(module)
        for thing in (getattr(module, name) for name in offers or ()):
            if inspect.ismodule(thing) and not hasattr(thing, "__all__"):
                yield from defined(thing)
            elif inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{thing.__module__}.{thing.__qualname__}"


PUBLIC = dict(public())
EXPORTED = set(exported())
FUNCTIONS = {k: f for k, f in PUBLIC.items() if inspect.isfunction(f) and "<lambda>" not in str(f)}
TOP = {k: f for k, f in FUNCTIONS.items() if k in EXPORTED}


def test_there_is_something_to_look_at():
    assert {"fedlearn.loop.federate", "fedlearn.simulated.Simulated.run"} <= set(PUBLIC)
    assert len(TOP) > 60 and len(PUBLIC) > len(EXPORTED)


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_is(name):
    first = (inspect.getdoc(PUBLIC[name]) or "").split("\n")[0]
    assert len(first) > 10, f"{name} needs a docstring"


def has_example(thing) -> bool:
    doc = thing.__doc__ or ""
    return "Example:" in doc and ">>>" in doc.split("Example:")[1]


def is_internal(name: str) -> bool:
    """Of the panels: what stands in no ``__all__`` needs one line and no example."""
    module, _, thing = name.rpartition(".")
    if not module.startswith("fedlearn.panels") or module.endswith(".freeze"):
        return False
    named = importlib.import_module("fedlearn.panels").__all__
    return thing not in {*named, *getattr(importlib.import_module(module), "__all__", ())}


@pytest.mark.parametrize("name", [name for name in TOP if not is_internal(name)])
def test_functions_show_an_example(name):
    assert has_example(TOP[name]), f"{name} needs 'Example:' with a >>> line"


def is_record(thing) -> bool:
    """Fields and no behaviour: named tuples, errors, enumerations, protocols, bare dataclasses."""
    if issubclass(thing, RECORDS) or getattr(thing, "_is_protocol", False):
        return True
    methods = [m for m, f in vars(thing).items() if inspect.isfunction(f) and m[0] != "_"]
    return dataclasses.is_dataclass(thing) and not methods


CLASSES = {k: PUBLIC[k] for k in EXPORTED if inspect.isclass(PUBLIC[k])}
CLASSES = {k: c for k, c in sorted(CLASSES.items()) if not is_record(c)}


@pytest.mark.parametrize("name", [name for name in CLASSES if not is_internal(name)])
def test_classes_show_an_example(name):
    """In their own docstring or in a method's."""
    assert has_example(CLASSES[name]) or any(map(has_example, vars(CLASSES[name]).values()))


@pytest.mark.parametrize("name", TOP)
def test_arguments_are_described(name):
    """A docstring with an Args section names every argument, and no other; a line may name two."""
    doc = inspect.getdoc(TOP[name]) or ""
    if "Args:" not in doc:
        return
    section = doc.split("Args:\n")[1].split("\n\n")[0]
    lines = [x for x in section.split("\n") if x.startswith("    ") and not x.startswith("     ")]
    said = {name.strip(" *") for x in lines for name in x.split(":")[0].split(",")}
    assert said == set(inspect.signature(TOP[name]).parameters)
