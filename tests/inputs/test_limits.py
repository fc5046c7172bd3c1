"""A trace's limits are checked once, with the line, when it is read: what loads can be played live and simulated."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from netem.channels import AnyChannel, Channel
from netem.wire import MAX_SHAPED_MBPS

CHANNEL: TypeAdapter[Channel] = TypeAdapter(AnyChannel)


def trace(path: Path, **settings: object) -> Channel:
    return CHANNEL.validate_python({"kind": "trace", "path": str(path), **settings})


@pytest.mark.parametrize(
    ("name", "text", "line", "what"),
    [
        ("a.up", "1\n" * 2000, 2000, "24,000 Mbit/s; at most 10,000"),
        ("a.up", "1\n" * 2000 + "100\n" * 90_000, 83_334, "in 100 ms are 10,000 Mbit/s; at most"),
        ("a.up", "50\n" * 50_000, 50_000, "opportunities in 50 ms"),
        ("a.up", "1\n150\n" + "200\n" * 83_334, 83_335, "opportunities in 100 ms"),
        ("a.up", "999999999999\n", 1, "no dates"),
        ("a.up", "1\n2\n3600003\n", 3, "no dates"),
        ("a.up", "1513000000\n1513000001\n", 1, "1.513e+06 s"),
        ("a.up", "1513000000000\n", 1, "not a whole number of milliseconds"),
        ("a.up", "1\n" + "9" * 5000 + "\n", 2, "not a whole number of milliseconds"),
        ("a.up", "1\n-2\n", 2, "not a whole number of milliseconds"),
        ("a.up", "1\n2.5\n", 2, "not a whole number of milliseconds"),
        ("a.up", "1\n\n2\n", 2, "not a whole number of milliseconds"),
        ("a.csv", "t_s,mbps\n0,24000\n", 2, "24000 Mbit/s is outside"),
        ("a.csv", "t_s,mbps\n0,1\n1,10001\n", 3, "10001 Mbit/s is outside"),
        ("a.csv", "t_s,mbps\n0,1\n1574694874,1\n", 3, "no dates"),
        ("a.csv", "t_s,mbps\n0,1\n3601,1\n", 3, "no dates"),
        ("a.csv", "t_s,mbps\n0,1\ninf,1\n", 3, "no dates"),
        ("a.csv", "t_s,mbps\n0,1\nnan,1\n", 3, "does not come after"),
        ("a.csv", "t_s,mbps\n0,inf\n", 2, "outside"),
        ("a.csv", "t_s,mbps\n0,1\n1," + "9" * 5000 + "\n", 3, "outside"),
        ("a.csv", "t_s,mbps\n0,1\n1," + "x" * 200_000 + "\n", 3, "field larger than field limit"),
    ],
)
def test_impossible_traces_name_the_line(tmp_path: Path, name: str, text: str, line: int, what: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValidationError) as error:
        trace(tmp_path / name)
    message = str(error.value)
    assert f"{name}:{line}: " in message and what in message
    assert len(message) < 1000


def test_too_many_bins_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.up").write_text("".join(f"{hour * 3_600_000}\n" for hour in range(1, 3)))
    with pytest.raises(ValidationError, match=r"a\.up:2: 7,200,000 bins of 1 ms; at most 2,000,000: raise bin_ms"):
        trace(tmp_path / "a.up", bin_ms=1)
    assert trace(tmp_path / "a.up").until(0, 1)


@pytest.mark.parametrize("bin_ms", [1, 20, 100, 1000])
def test_what_loads_is_within_the_link(tmp_path: Path, bin_ms: int) -> None:
    """As many opportunities as fit the fastest link, and one more; also in a last bin that is cut off."""
    most = int(MAX_SHAPED_MBPS * 1000 / (1500 * 8))
    (tmp_path / "a.up").write_text("".join(f"{ms}\n" * most for ms in (1, 2, 3)))
    assert all(change.mbps <= MAX_SHAPED_MBPS for change in trace(tmp_path / "a.up", bin_ms=bin_ms).until(0, 1))
    (tmp_path / "a.up").write_text("".join(f"{ms}\n" * (most + 1) for ms in (1, 2, 3)))
    with pytest.raises(ValidationError, match="at most 10,000"):
        trace(tmp_path / "a.up", bin_ms=bin_ms)


@pytest.mark.parametrize(
    ("name", "content", "bytes_carried"),
    [
        ("a.up", b"1\r\n2\r\n3\r\n", 4500),
        ("a.up", b"\xef\xbb\xbf1\n2\n3\n", 4500),
        ("a.up", b"1\r2\r3", 4500),
        ("a.up", b" 1 \n2\n3\n", 4500),
        ("T.CSV", b"t_s,mbps\n0,12\n", 1_500_000),
        ("a.csv", b'\xef\xbb\xbf"t_s","mbps"\r\n"0","12"\r\n', 1_500_000),
        ("a.csv", b"t_s, mbps\n0, 12\n", 1_500_000),
    ],
)
def test_files_of_other_systems_are_read(tmp_path: Path, name: str, content: bytes, bytes_carried: float) -> None:
    (tmp_path / name).write_bytes(content)
    length_s = 0.003 if name == "a.up" else 1.0
    [change] = trace(tmp_path / name).until(0, length_s)
    assert change.mbps * 1e6 / 8 * length_s == pytest.approx(bytes_carried)
