"""Files: round trips, strict JSON, limits, and writing that never loses what is on disk."""

from __future__ import annotations

import copy
import gzip
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_fakes import best_schedule, problem_dict, schedule_dict
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from strategies import exactly, problem_dicts, problems, schedules

from schedopt import io
from schedopt.errors import InputError
from schedopt.files import parse_problem, parse_schedule, schedule_to_dict
from schedopt.jsontext import INLINE_LENGTH, dumps, join_path, parse_object, preview
from schedopt.problem import Problem
from schedopt.result import SolveResult, SolveStatus
from schedopt.schedule import Schedule
from schedopt.schemas import json_schema, unit_of


@pytest.fixture
def problem() -> Problem:
    return parse_problem(problem_dict())


def write(path: Path, data: Any) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode())
    return path


# --- round trips ----------------------------------------------------------------------------------------------------------------


@exactly(60)
@given(problems())
def test_problem_round_trip(problem: Problem) -> None:
    text = io.problem_text(problem)
    again = parse_problem(parse_object(text))
    assert again == problem
    assert again.digest == problem.digest
    assert io.problem_text(again) == text


@exactly(80)
@given(problems().flatmap(lambda p: st.tuples(st.just(p), schedules(p))))
def test_schedule_round_trip(pair: tuple[Problem, Schedule]) -> None:
    problem, schedule = pair
    text = io.schedule_text(problem, schedule)
    again = parse_schedule(parse_object(text))
    assert again.problem == problem
    assert again.schedule.digest == schedule.sorted().digest
    assert again.result is not None and set(again.result.tasks) == set(problem.task_index)
    assert io.schedule_text(again.problem, again.schedule) == text


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_files_round_trip(tmp_path: Path, problem: Problem, name: str) -> None:
    path = tmp_path / name
    io.save_problem(path, problem)
    assert io.load_problem(path) == problem
    io.save_schedule(path, problem, best_schedule())
    file = io.load_schedule(path)
    assert (file.problem, file.schedule.digest) == (problem, best_schedule().sorted().digest)
    assert isinstance(io.load_any(path), io.ScheduleFile)
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left behind"


def test_gzip_is_recognised_by_content(tmp_path: Path, problem: Problem) -> None:
    path = write(tmp_path / "misnamed.json", gzip.compress(io.problem_text(problem).encode()))
    assert io.load_problem(path) == problem
    # two members one after the other are one file, and padding is ignored
    text = io.problem_text(problem).encode()
    write(path, gzip.compress(text[:100]) + gzip.compress(text[100:]) + b"\0" * 512)
    assert io.load_problem(path) == problem


def test_gzipped_files_are_the_same_bytes_whenever_and_whatever_they_are_called(tmp_path: Path, problem: Problem) -> None:
    io.save_problem(tmp_path / "a.json.gz", problem)
    io.save_problem(tmp_path / "b.json.gz", problem)
    content = (tmp_path / "a.json.gz").read_bytes()
    assert content == (tmp_path / "b.json.gz").read_bytes()
    assert content[4:8] == bytes(4), "no time in the header"


def test_byte_order_mark_is_skipped(tmp_path: Path, problem: Problem) -> None:
    assert io.load_problem(write(tmp_path / "p.json", b"\xef\xbb\xbf" + io.problem_text(problem).encode())) == problem


def test_file_order_is_kept_on_reading_and_sorted_on_writing() -> None:
    data = schedule_dict()
    data["assignments"].reverse()
    schedule = parse_schedule(data).schedule
    assert schedule.start.tolist() == [1, 0]
    written = schedule_to_dict(parse_problem(data["problem"]), schedule)
    assert [entry["start"] for entry in written["assignments"]] == [0, 1]


def test_layout_is_readable(problem: Problem) -> None:
    lines = io.schedule_text(problem, best_schedule()).splitlines()
    assert sum('"steps": 8, "batch": 64' in line for line in lines) == 2, "an assignment is one line, steps and batch whole numbers"
    assert '    {"device": "dev00", "task": "svhn", "start": 0, "end": 2, ' in "\n".join(lines)
    assert any(line.strip().startswith('"freq_hz": [200000000.0, 1500000000.0]') for line in lines)
    assert sum(line.strip().startswith('"mnist": {"samples": 600') for line in lines) == 2, "a device's task is one line"
    assert all(len(line) <= INLINE_LENGTH + 30 for line in lines)


@exactly(100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=300),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=30,
    )
)
def test_layout_is_json_of_the_same_value(value: Any) -> None:
    assert json.loads(dumps(value)) == value


def test_layout_refuses_what_json_has_not() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        dumps({"a": [1.0, float("nan")]})


def test_hundred_thousand_assignments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data, n = problem_dict(), 100_000
    data["horizon"]["slots"] = 2000
    problem = parse_problem(data)
    start = rng.integers(0, 1990, n)
    schedule = Schedule(
        rng.integers(0, 2, n), rng.integers(0, 2, n), start, start + rng.integers(1, 6, n), rng.integers(1, 20, n),
        rng.integers(8, 600, n), rng.uniform(2e8, 1.5e9, n), rng.uniform(1e-3, 0.2, n), rng.uniform(1e4, 1e6, n),
    )  # fmt: skip
    path = tmp_path / "large.json.gz"
    io.save_schedule(path, problem, schedule)
    assert io.load_schedule(path).schedule.digest == schedule.sorted().digest


# --- the result -----------------------------------------------------------------------------------------------------------------


def test_result_is_exactly_the_format(problem: Problem) -> None:
    result = SolveResult(
        SolveStatus.SOLVED, best_schedule(), 1.0, "sca", backend="clarabel", lower_bound=300.0, iterations=14, kkt_residual=3e-6,
        wall_s=1.2, seed=7, lower_bound_method="ratios", reason="",
    )  # fmt: skip
    data = schedule_to_dict(problem, best_schedule(), result)
    assert list(data) == ["schema", "problem", "assignments", "result"]
    stated = data["result"]
    assert list(stated) == ["objective", "energy_j", "tasks", "lower_bound", "gap", "solver"]
    assert stated["solver"] == {
        "name": "sca", "backend": "clarabel", "iterations": 14, "kkt_residual": 3e-6, "wall_s": 1.2, "seed": 7,
    }  # fmt: skip
    assert list(stated["tasks"]["svhn"]) == ["bound", "energy_j", "assignments", "certified"]
    assert "interrupted" not in stated
    interrupted = schedule_to_dict(problem, best_schedule(), result.replace(status=SolveStatus.INTERRUPTED))
    assert interrupted["result"]["interrupted"] is True
    assert parse_schedule(interrupted).result.interrupted is True  # type: ignore[union-attr]


def test_infinite_values_are_null(problem: Problem) -> None:
    stated = schedule_to_dict(problem, best_schedule().take(np.array([0])))["result"]
    assert stated["objective"] is None
    assert stated["tasks"]["mnist"] == {"bound": None, "energy_j": 0.0, "assignments": 0, "certified": False}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 2.5, "assignments[1].steps = 2.5; must be a whole number, at least 1"),
        ("freq_hz", np.nan, "assignments[1].freq_hz = nan; must be a finite number greater than 0"),
        ("end", 1, "assignments[1].end = 1; must be after start = 1"),
        ("end", 7, "assignments[1].end = 7; must be at most horizon.slots = 6"),
        ("start", -1, "assignments[0].start = -1; must be at least 0"),
        ("device", 2, "assignments: a device or task index outside the problem's lists"),
    ],
)
def test_schedules_that_could_not_be_read_back_are_not_written(
    tmp_path: Path, problem: Problem, field: str, value: float, message: str
) -> None:
    array = getattr(best_schedule(), field).copy()
    array[1] = value
    with pytest.raises(InputError) as caught:
        io.save_schedule(tmp_path / "s.json", problem, best_schedule().replace(**{field: array}))
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


# --- strict JSON ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "a = NaN; must be a finite number"),
        ('{"a": [1, {"b c": -Infinity}]}', 'a[1]["b c"] = -Infinity; must be a finite number'),
        ('{"a": 1e400}', "a = 1e400; must be a finite number"),
        ('{"a": -1e999}', "a = -1e999; must be a finite number"),
        ('{"a": 1e-400}', "a = 1e-400; must be 0 or at least 5e-324 in size (smaller numbers would be read as 0)"),
        ('{"a": [-0.00' + "0" * 330 + "1]}", "0...; must be 0 or at least 5e-324 in size"),
        (f'{{"a": {"9" * 400}}}', f"a = {'9' * 57}...; must be a finite number"),
        (f'{{"a": {"9" * 5000}}}', "must be a finite number"),
        ('{"a": {"x": 1, "y": 2, "x": 3}}', "a.x: key given more than once in one object; keys must be unique"),
        ('{"a": 1, "a": 1}', "a: key given more than once"),
        ('{"a": {"b": 1, "b": 2}, "a": 3}', "a: key given more than once"),
        ('{"a": "\\ud800"}', "a: text with half a surrogate pair; must be valid Unicode"),
        ('{"a": {"\\udc00\\ud800": 1}}', "a: text with half a surrogate pair"),
        ("[1, 2]", "top level is [1, 2]; must be a JSON object"),
        ("null", "top level is null; must be a JSON object"),
        ('"a"', 'top level is "a"; must be a JSON object'),
        ("", "empty; must be a JSON object"),
        (" \n ", "empty; must be a JSON object"),
        ("\x1f", "line 1, column 1: not valid JSON"),
        ('{"a": 1', "line 1, column 8: not valid JSON: Expecting ',' delimiter (the file ends too early)"),
        ('{"a":\n [1, "b', "line 2, column 6: not valid JSON: Unterminated string starting at (the file ends too early)"),
        ('{"a": 1,}', "line 1, column "),
        ("{'a': 1}", "line 1, column 2: not valid JSON"),
        ('{"a": 1} x', "line 1, column 10: not valid JSON: Extra data"),
        ('{"a": 01}', "line 1, column 8: not valid JSON"),
        ('{"a": "\t"}', "line 1, column 8: not valid JSON: Invalid control character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_strict_json(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_object(text)
    assert message in str(caught.value)


def test_json_that_is_fine() -> None:
    assert parse_object('{"a": "\\ud83d\\ude00 \\\\ud800", "b": 0.00e-400, "c": -0.0, "d": 12345678901234567890}') == {
        "a": "\U0001f600 \\ud800", "b": 0.0, "c": 0.0, "d": 12345678901234567890,
    }  # fmt: skip
    assert parse_object(f'{{"a": {"1" * 305}}}')["a"] == int("1" * 305)


def test_paths_and_previews() -> None:
    assert join_path(["devices", 3, "freq_hz", 0]) == "devices[3].freq_hz[0]"
    assert join_path(["tasks", "fashion-mnist", "a b", ""]) == 'tasks.fashion-mnist["a b"][""]'
    assert preview({"a": 1}) == "an object with 1 key"
    assert preview([1, None, True]) == "[1, null, true]"
    assert preview(list(range(100))) == "a list of length 100"
    assert len(preview("x" * 10**6)) == 60
    assert preview("ä\n") == '"ä\\n"'


# --- what is read ---------------------------------------------------------------------------------------------------------------


def refusal(path: str | Path) -> str:
    """The message with which all loaders refuse ``path``."""
    messages = set()
    for load in (io.load_problem, io.load_schedule, io.load_any):
        with pytest.raises(InputError) as caught:
            load(path)
        messages.add(str(caught.value))
    assert len(messages) == 1
    return messages.pop()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert refusal(tmp_path) == f"{tmp_path}: is a directory; must be a file"
    assert refusal(tmp_path / "missing") == f"{tmp_path / 'missing'}: No such file or directory"
    assert refusal(tmp_path / "dangling").endswith("No such file or directory")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "not a regular file" in refusal("/dev/zero")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert refusal("") == "'': not a file name"
    assert "not a file name" in refusal("a\0b")
    assert refusal(write(tmp_path / "file", "{}") / "below").endswith("Not a directory")


def test_streams_are_written_to(tmp_path: Path) -> None:
    """A pipe, a device, an open file by its number: not replaced, and an open file not written from its beginning."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        io.check_output(tmp_path / name)
        with pytest.raises(InputError, match="is a pipe or a device; must be a file"):
            io.check_output(tmp_path / name, streams=False)
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        io.write_text(tmp_path / name, "through")
        assert os.read(reader, 100) == b"through"
        os.close(reader)
    io.check_output("/dev/null")
    io.write_bytes("/dev/null", b"gone")
    assert not Path("/dev/null").is_file()
    with open(tmp_path / "log", "wb") as log:
        log.write(b"first\n")
        log.flush()
        named = f"/dev/fd/{log.fileno()}"
        (tmp_path / "alias").symlink_to(named)
        for name in (named, f"/proc/self/fd/{log.fileno()}", str(tmp_path / "alias")):
            assert io.descriptor_of(name) == log.fileno()
            io.check_output(name)
            io.write_text(name, "more\n")
        log.write(b"last\n")
    assert (tmp_path / "log").read_text() == "first\n" + 3 * "more\n" + "last\n"
    with open(tmp_path / "log", "rb") as log, pytest.raises(InputError, match="Bad file descriptor"):
        io.check_output(f"/dev/fd/{log.fileno()}")
    for name in ("", "-", "fd/1", str(tmp_path / "1"), "a\0b"):
        assert io.descriptor_of(name) is None
    (tmp_path / "loop").symlink_to("loop")
    assert io.descriptor_of(tmp_path / "loop") is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", problem_dict())
    path.chmod(0)
    assert refusal(path) == f"{path}: Permission denied"


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with open(path, "wb") as file:
        file.truncate(100 * 2**20)  # a sparse file: it costs nothing, and reading it would
    assert refusal(path) == f"{path}: 104,857,600 bytes (100.0 MiB); must be at most 64 MiB (larger schedules can be gzipped)"


def test_file_that_grows_or_lies_about_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "MAX_FILE_BYTES", 1000)
    real = os.fstat

    def small(descriptor: int) -> os.stat_result:
        values = list(real(descriptor))
        values[stat.ST_SIZE] = 0
        return os.stat_result(values)

    path = write(tmp_path / "p.json", b" " * 5000)
    monkeypatch.setattr(os, "fstat", small)
    assert "1,001 bytes" in refusal(path)


def test_gzip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "MAX_EXPANDED_BYTES", 8 * 2**20)
    honest = write(tmp_path / "honest.gz", gzip.compress(b" " * (9 * 2**20)))
    assert refusal(honest) == f"{honest}: gzip: is stated to expand to 9 MiB or more; must be at most 8 MiB"
    member = gzip.compress(b" " * 2**20)
    assert "gzip: expands to 9 MiB or more; must be at most 8 MiB" in refusal(write(tmp_path / "many.gz", member * 20))


def test_broken_gzip(tmp_path: Path, problem: Problem) -> None:
    good = gzip.compress(io.problem_text(problem).encode())
    # wherever it is cut: what then stands in the place of the trailer is no size
    for length in range(2, len(good), 7):
        assert refusal(write(tmp_path / "a", good[:length])).endswith("damaged gzip file: it ends too early")
    assert "damaged gzip file: " in refusal(write(tmp_path / "b", good[:50] + b"\xff\xff\xff" + good[53:]))
    assert "damaged gzip file: Not a gzipped file" in refusal(write(tmp_path / "c", good + b"rubbish\0\0\0\0"))
    assert "damaged gzip file: CRC check failed" in refusal(write(tmp_path / "d", good[:-8] + b"\0\0\0\0" + good[-4:]))
    assert "damaged gzip file: " in refusal(write(tmp_path / "e", good[:-4] + (3 * 2**30).to_bytes(4, "little")))


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    assert refusal(write(path, b'{"name": "caf\xe9"}')) == f"{path}: byte 13 = 0xe9: not UTF-8 text, hence not JSON"
    assert refusal(write(path, b'\xef\xbb\xbf{"name": "\xff"}')) == f"{path}: byte 13 = 0xff: not UTF-8 text, hence not JSON"
    assert "byte 0 = 0xff" in refusal(write(path, '{"a": 1}'.encode("utf-16")))


def test_schema_tells_the_kind_of_file(tmp_path: Path) -> None:
    path = write(tmp_path / "f.json", problem_dict())
    assert isinstance(io.load_any(path), Problem)
    with pytest.raises(InputError, match='f.json: schema = "schedopt.problem/1"; must be "schedopt.schedule/1"'):
        io.load_schedule(path)
    write(path, {"schema": "schedopt.problem/2"})
    with pytest.raises(InputError, match='schema = "schedopt.problem/2"; must be "schedopt.problem/1" or "schedopt.schedule/1"'):
        io.load_any(path)
    write(path, {})
    with pytest.raises(InputError, match='schema: missing; must be "schedopt.problem/1"$'):
        io.load_problem(path)


# --- what is written ------------------------------------------------------------------------------------------------------------


def test_modes_and_links(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        io.write_text(tmp_path / "new", "x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640, "a new file is as open as any other"
    (tmp_path / "new").chmod(0o604)
    (tmp_path / "link").symlink_to("new")
    io.write_text(tmp_path / "link", "y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_text() == "y"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604, "the mode of an existing file stays"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    path = write(tmp_path / "out.json", "precious")

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(os, failing, fail)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        io.write_text(path, "new")
    if expected is InputError:
        assert str(caught.value) == f"{path}: No space left on device"
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    source = write(tmp_path / "in.json", "{}")
    (tmp_path / "alias.json").symlink_to("in.json")
    for path, message in {
        str(tmp_path): "is a directory; must be a file",
        f"{tmp_path}/new/": "is a directory; must be a file",
        str(tmp_path / "no" / "out.json"): "no such directory: ",
        str(tmp_path / "socket"): "not a regular file",
        "/dev/fd/99": "Bad file descriptor",
        str(source / "out.json"): "Not a directory",
        str(tmp_path / ("x" * 300)): "File name too long",
        str(source): "is the input; the output must be another file",
        str(tmp_path / "alias.json"): "is the input; the output must be another file",
        "": "not a file name",
    }.items():
        with pytest.raises(InputError) as caught:
            io.check_output(path, inputs=(source,))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    io.check_output(tmp_path / "out.json", inputs=(source, tmp_path / "missing"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"socket", "in.json", "alias.json"}, "nothing is left behind"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_protected_outputs(tmp_path: Path) -> None:
    path = write(tmp_path / "out.json", "precious")
    path.chmod(0o444)
    with pytest.raises(InputError, match="is write-protected"):
        io.check_output(path)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(InputError, match="Permission denied"):
            io.check_output(tmp_path / "new.json")
    finally:
        tmp_path.chmod(0o755)


# --- the published schemas ------------------------------------------------------------------------------------------------------

PROBLEM_CHECK = Draft202012Validator(json_schema("problem"))
SCHEDULE_CHECK = Draft202012Validator(json_schema("schedule"))


@pytest.mark.parametrize("kind", ["problem", "schedule"])
def test_schemas_are_schemas(kind: str) -> None:
    schema = json_schema(kind)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:schedopt:schema:{kind}:1"
    assert schema["title"] == f"schedopt {kind} file"


def test_quantities_have_units() -> None:
    assert unit_of("freq_hz") == "Hz"
    assert unit_of("noise_w_per_hz") == "W/Hz"
    assert unit_of("weight") is None
    pair = json_schema("schedule")["$defs"]["DeviceTask"]["properties"]
    assert pair["cycles_per_sample"]["unit"] == "cycle"
    assert "description" in pair["cycles_per_sample"]


def test_examples_meet_the_schemas() -> None:
    PROBLEM_CHECK.validate(problem_dict())
    SCHEDULE_CHECK.validate(schedule_dict())


@exactly(40)
@given(problem_dicts())
def test_what_loads_meets_the_schema(data: dict[str, Any]) -> None:
    problem = parse_problem(data)
    PROBLEM_CHECK.validate(data)
    PROBLEM_CHECK.validate(problem.to_dict())


@exactly(20)
@given(problems().flatmap(lambda p: st.tuples(st.just(p), schedules(p))))
def test_what_is_written_meets_the_schema(pair: tuple[Problem, Schedule]) -> None:
    SCHEDULE_CHECK.validate(json.loads(io.schedule_text(*pair)))


JUNK = st.one_of(
    st.none(), st.booleans(), st.sampled_from([0, -1, 0.0, -2.5, 1.5, 1, 3, 1e300, 10**200, "", "svhn", "x", "1", [], {}, [1.0], [-1, 2]]),
    st.sampled_from([{"a": 1}, [[]], ["x"], [1, 2, 3], "weighted", "delta"]),
).map(copy.deepcopy)  # fmt: skip


def spots(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every value inside ``value``."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [path for key, entry in entries for path in ((*at, key), *spots(entry, (*at, key)))]


@st.composite
def damaged(draw: st.DrawFn, original: dict[str, Any]) -> dict[str, Any]:
    """``original`` with one to three values replaced, removed or added."""
    data = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(spots(data)))
        owner = data
        for key in path[:-1]:
            owner = owner[key]
        action = draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "replace":
            owner[path[-1]] = draw(JUNK)
        elif action == "remove":
            del owner[path[-1]]
        elif isinstance(owner, dict):
            owner[draw(st.sampled_from(["freqhz", "weights", "x y", ""]))] = draw(JUNK)
        else:
            owner.append(draw(JUNK))
    return data


@exactly(400)
@given(damaged(schedule_dict() | {"result": None}))
def test_damaged_files_are_refused_in_one_line_and_as_the_schema_does(data: dict[str, Any]) -> None:
    """What the schema refuses the loader refuses too; beyond it the loader only refuses relations between fields."""
    try:
        parse_schedule(data)
    except InputError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 1000
        assert message.count("; must") + message.count("unknown key; ") + message.count("missing") <= 2, "one problem, not a list"
        assert "function-" not in message and "Input" not in message and "tuple[" not in message, "no word of the library's"
        if SCHEDULE_CHECK.is_valid(data):
            assert any(word in message for word in RELATIONS), message
    else:
        SCHEDULE_CHECK.validate(data)


#: Words of the messages about relations that a schema cannot express.
RELATIONS = (
    "must be unique", "learning_rate * prox", "one per slot", "no such task", "at least one must", "must sum to 1", "is inverted",
    "must be one of the problem's", "holds no data", "must be after start", "must be at most horizon.slots", "needs a target",
)  # fmt: skip
