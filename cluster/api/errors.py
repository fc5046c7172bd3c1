"""Errors that users of the API meet; the messages are those of the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.run_folder.folder import RunFolderError
from cluster.scenario.yaml_document import DocumentError
from reports.comparison import ComparisonError
from reports.runs import ReportError


class ScoutError(Exception):
    """Base of the errors that a user can act on."""


class InputError(ScoutError, ValueError):
    """What was given is wrong: a scenario, an override, an allocator, a problem, a folder."""


class UnavailableError(ScoutError, RuntimeError):
    """This machine or its Ray can't do what is asked; the message has a remedy."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a run or a comparison.

    Attributes:
        results: what there is, marked as partial: of a run, or of a comparison.
    """

    def __init__(self, results: Any) -> None:
        super().__init__(f"interrupted; what there is: {results.folder}")
        self.results = results


@contextmanager
def input_errors() -> Iterator[None]:
    """Raise what is wrong with the input as InputError, with the same message."""
    try:
        yield
    except (DocumentError, RunFolderError, ComparisonError, ReportError) as error:
        raise InputError(str(error)) from None
