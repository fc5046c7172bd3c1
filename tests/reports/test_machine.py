"""What a result says about where it came from."""

import sys
from unittest import mock

import pytest

from reports.machine import describe_machine


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/home/me/.venv/bin/scout", "run", "a b.yaml"], "scout run 'a b.yaml'"),
        (["/opt/scout/cluster/__main__.py", "doctor"], "python -m cluster doctor"),
        (["notebook.py"], "notebook.py"),
    ],
)
def test_a_command_is_told_without_the_place_of_its_program(argv: list[str], command: str) -> None:
    with mock.patch.object(sys, "argv", argv):
        assert describe_machine().command == command
