"""What a dashboard asks for goes through a file, line by line, and only events get through."""

from pathlib import Path

import pytest

from cluster.run_folder.controls import MAX_LINE_BYTES, Inbox, ask, parse
from cluster.scenario.events import EventRefused, PauseAgent, SetDeadline
from reports import files


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense",
        b"[]",
        b'{"kind": "shell", "command": "id"}',
        b'{"kind": "uplink", "steps": []}',
        b'{"kind": "uplink", "steps": [{"mbps": 0, "for_s": 1}]}',
        b'{"kind": "uplink", "steps": [{"mbps": 1e999, "for_s": 1}]}',
        b'{"kind": "deadline", "ms": -1}',
        b'{"kind": "deadline", "ms": NaN}',
        b'{"kind": "pause", "agent": -1, "paused": true}',
        b'{"kind": "pause", "agent": 1, "paused": true, "more": 1}',
        b'{"kind": "deadline", "ms": 900, "at_s": 3}',
        b'{"kind": "kill", "part": "driver"}',
        b'{"kind": "freeze", "part": "worker", "number": 0}',
        b'{"kind": "deadline", "ms": 1' + b" " * MAX_LINE_BYTES + b"}",
    ],
)
def test_what_isn_t_an_event_is_refused_in_a_line(text: bytes) -> None:
    with pytest.raises(EventRefused) as refused:
        parse(text)
    assert "\n" not in str(refused.value) and str(refused.value)


def test_the_inbox_takes_whole_lines_once(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    assert inbox.read() == []
    first, second = SetDeadline(ms=900), PauseAgent(agent=3, paused=True)
    ask(tmp_path, first)
    assert inbox.read() == [first] and inbox.read() == []
    with (tmp_path / files.CONTROLS).open("ab") as file:
        file.write(b"nonsense\n" + second.model_dump_json().encode()[:9])
    (refused,) = inbox.read()
    assert isinstance(refused, EventRefused)
    with (tmp_path / files.CONTROLS).open("ab") as file:
        file.write(second.model_dump_json().encode()[9:] + b"\n")
    assert inbox.read() == [second]
    assert (tmp_path / files.CONTROLS).stat().st_mode & 0o777 == 0o600
