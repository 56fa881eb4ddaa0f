"""The examples in the docstrings of `core` run, and each public module has at least two.

Exempt by rule are modules whose name begins with an underscore, packages, and modules that define constants
or exceptions only. An example counts when it has an expected result.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

from cryptovol_dagster import core

_LEAST = 2


def names() -> list[str]:
    """Return the names of all modules of `core`, packages and private modules left out."""
    found = pkgutil.walk_packages(core.__path__, f"{core.__name__}.")
    return [module.name for module in found if not module.ispkg and "._" not in module.name]


def defines_behaviour(module: ModuleType) -> bool:
    """Return whether a module defines a public function or a public class other than an exception."""
    own = [value for name, value in vars(module).items() if not name.startswith("_")]
    return any(
        getattr(value, "__module__", "") == module.__name__
        and (inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception)))
        for value in own
    )


@pytest.mark.parametrize("name", names())
def test_examples_give_the_results_they_state(name: str) -> None:
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder().find(module)
    runner = doctest.DocTestRunner(verbose=False)
    output: list[str] = []
    for test in tests:
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
    if defines_behaviour(module):
        assert sum(bool(example.want) for test in tests for example in test.examples) >= _LEAST
