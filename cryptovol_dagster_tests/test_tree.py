"""Test folders and rooms correspond; README.md in this folder describes both."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cryptovol_dagster_tests.places import REPOSITORY

TESTS = Path(__file__).parent
#: Folders that prove something about more than one room.
LADDER = {"compat", "deployment", "e2e", "faults", "notebooks", "soak"}
#: Rooms whose tests stand in another folder.
ELSEWHERE = {"resources": "compat"}


def folders(root: Path, pattern: str, inside: str = "") -> set[str]:
    """Return the folders that hold such a file other than `__init__.py`, named as test folders are."""
    files = (path.relative_to(root) for path in root.rglob(pattern) if path.name != "__init__.py")
    return {str(PurePosixPath(inside, *file.parent.parts)) for file in files}


ROOMS = folders(REPOSITORY / "cryptovol_dagster", "*.py") | folders(
    REPOSITORY / "ingestor", "*.py", "ingestor"
)


def test_every_test_folder_names_a_room_or_a_rung_of_the_ladder() -> None:
    assert folders(TESTS, "*.py") - ROOMS == LADDER


def test_every_room_has_tests() -> None:
    assert ROOMS - folders(TESTS, "test_*.py") <= ELSEWHERE.keys()


def test_the_readme_describes_every_rung() -> None:
    readme = (TESTS / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(LADDER) if f"| `{name}/` |" not in readme] == []
