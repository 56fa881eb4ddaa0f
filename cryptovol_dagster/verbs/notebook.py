"""`cryptovol notebook`: a notebook of the repository, run on the configured data and written as a page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ingestor.errors import CryptovolError, one_line
from ingestor.settings import load_settings

NOTEBOOK = Path("notebooks/eda.ipynb")


class NotebookError(CryptovolError):
    """A notebook cannot be run to its end; the message is one line."""


@click.command()
@click.argument("path", default=NOTEBOOK, type=click.Path(path_type=Path))
def notebook(path: Path) -> None:
    """Run a notebook (default: notebooks/eda.ipynb) and write it as HTML into the folder of the reports.

    It needs a clone of the repository and its development packages (`make notebook` installs them).

    \b
    Examples:
      cryptovol notebook
      cryptovol --config data/demo/config.yaml notebook      on the demo's data, into data/demo/reports
    """
    from cryptovol_dagster.lake.latest import Reports

    settings = load_settings().settings
    storage = settings.storage
    page = storage.reports_dir / f"{path.stem}.html"
    if sys.stderr.isatty():
        click.echo(f"running {path} on {storage.data_dir}: a minute or two", err=True)
    content = _run(path)
    click.echo(f"written to {Reports(storage.reports_dir, storage.artifacts_dir).write(page, content)}")


def _run(path: Path) -> bytes:
    """Run a notebook's cells in their own kernel and return the page.

    Raises:
        NotebookError: it is absent or unreadable, its packages are not installed, or a cell failed.
    """
    try:
        import ipykernel  # noqa: F401 - the kernel that the client starts
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, DeadKernelError
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise NotebookError(
            f"{error.name} is not installed: notebooks need the development packages; type `make notebook`"
        ) from None

    if not path.is_file():
        raise NotebookError(f"{path}: no such notebook; go to a clone of the repository, or name another one")
    try:
        book = nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise NotebookError(f"{path}: cannot be read as a notebook: {one_line(str(error))[:200]}") from error
    client = NotebookClient(
        book,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # a kernel's warnings are not for the user
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise NotebookError(f"{path}: {error.ename}: {one_line(error.evalue)}") from None
    except DeadKernelError as error:
        raise NotebookError(f"{path}: {one_line(str(error))}; was there too little memory?") from None
    page, _ = HTMLExporter().from_notebook_node(book)
    return page.encode()
