"""The command line as a whole: every command parses, explains itself, and ends errors with one sentence."""

import argparse
import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import monai_wscxr
from monai_wscxr.__main__ import INTERRUPTED as INTERRUPTED_EARLY
from monai_wscxr.__main__ import Interrupt
from monai_wscxr.commands import phantom
from monai_wscxr.commands.exit_status import INTERRUPTED, OUTPUT_CLOSED, UNUSABLE
from monai_wscxr.commands.main import create_parser, main
from monai_wscxr.errors import InputError


def parsers(parser=None):
    """Yield the parsers of all commands and actions with their names."""
    for action in (parser or create_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for found in action.choices.values():
                yield found
                yield from parsers(found)


@pytest.mark.parametrize("parser", list(parsers()), ids=lambda parser: parser.prog)
def test_every_command_explains_itself_and_its_options(parser):
    assert parser.prog.startswith("monai-wscxr ")
    help_text = parser.format_help()
    assert "python -m" not in help_text
    for action in parser._actions:
        for option in action.option_strings:
            assert re.fullmatch(r"-h|--[a-z0-9_]+|--no-[a-z0-9_]+", option), option
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, f"{parser.prog}: {action.dest} has no help"


def test_every_command_can_be_run():
    commands = next(a for a in create_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        assert callable(parser.get_default("run")), name
    assert {a.dest for a in commands._choices_actions} == set(commands.choices)
    assert all(a.help for a in commands._choices_actions)


def test_an_input_error_is_one_sentence_and_status_2(monkeypatch, capsys):
    def fail(options):
        raise InputError("the folder is full")

    monkeypatch.setattr(phantom, "run", fail)
    with pytest.raises(SystemExit) as ended:
        main(["phantom", "somewhere"])
    assert ended.value.code == UNUSABLE
    assert capsys.readouterr().err == "error: the folder is full\n"


@pytest.mark.parametrize(("status", "code"), [(None, None), (0, None), (1, 1), (3, 3)])
def test_the_status_of_a_command_is_that_of_the_program(monkeypatch, status, code):
    given = []
    monkeypatch.setattr(phantom, "run", lambda options: given.append(options.arguments) or status)
    if code is None:
        main(["phantom", "somewhere", "--seed", "3"])
    else:
        with pytest.raises(SystemExit) as ended:
            main(["phantom", "somewhere", "--seed", "3"])
        assert ended.value.code == code
    assert given == [["phantom", "somewhere", "--seed", "3"]]


def test_version_without_importing_torch():
    code = (
        "import sys; from monai_wscxr.commands.main import main\n"
        "try: main(['--version'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{monai_wscxr.__version__}\nFalse\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_ended_is_no_error(unbuffered):
    root = os.path.dirname(os.path.dirname(monai_wscxr.__file__))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "monai_wscxr", "bundle", "path"], stdout=writer, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": unbuffered}, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (OUTPUT_CLOSED, "")


def test_a_broken_pipe_elsewhere_stays_an_error(monkeypatch):
    def fail(options):
        raise BrokenPipeError("to a worker process")

    monkeypatch.setattr(phantom, "run", fail)
    with pytest.raises(BrokenPipeError, match="to a worker process"):
        main(["phantom", "somewhere"])


def test_an_interrupted_command_ends_with_its_status(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["phantom", "somewhere"])
    assert ended.value.code == INTERRUPTED == INTERRUPTED_EARLY == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_import_is_interrupted_at_once_and_work_by_an_exception(monkeypatch, tmp_path, capfd):
    statuses = []

    def ended(status):
        statuses.append(status)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", ended)
    handler = Interrupt()
    with pytest.raises(SystemExit):
        handler(signal.SIGINT, sys._getframe())  # before the command works
    handler.working = True
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, sys._getframe())
    (tmp_path / "slow_import.py").write_text(
        "import sys, tests.commands.test_main as t\nt.FOUND[0](2, sys._getframe())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    FOUND[:] = [handler]
    with pytest.raises(SystemExit):
        import slow_import  # noqa: F401
    assert statuses == [130, 130]
    assert capfd.readouterr().err == "interrupted\n" * 2


FOUND: list[Interrupt] = []


@pytest.mark.parametrize("module", ["monai_wscxr.commands.main", "numpy"])
def test_ctrl_c_during_imports_prints_no_stack_trace(tmp_path, module):
    command = [
        sys.executable,
        "-m",
        "monai_wscxr",
        "predict",
        str(tmp_path),
        "--model",
        str(tmp_path),
        "--output",
        "out",
    ]
    hold = tmp_path / "hold" / "sitecustomize.py"  # stops in an import, however fast the machine is
    hold.parent.mkdir()
    hold.write_text(
        "import sys, time\n"
        "class Hold:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            try: print(name, flush=True); time.sleep(30)\n"
        "            except KeyboardInterrupt: raise ImportError('as some libraries turn it into')\n"
        "sys.meta_path.insert(0, Hold())\n"
    )
    root = str(os.path.dirname(os.path.dirname(monai_wscxr.__file__)))
    environment = {**os.environ, "PYTHONPATH": f"{hold.parent}{os.pathsep}{root}"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == f"{module}\n"
    time.sleep(0.2)  # for the first statement of `try` to end
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted\n"


@pytest.mark.parametrize("path", ["/somewhere/results", None])
def test_a_full_disk_is_one_sentence_wherever_it_is_noticed(monkeypatch, capsys, path):
    def fail(options):
        raise OSError(errno.ENOSPC, "No space left on device", *[path] * (path is not None))

    monkeypatch.setattr(phantom, "run", fail)
    with pytest.raises(SystemExit) as ended:
        main(["phantom", "somewhere"])
    assert ended.value.code == UNUSABLE
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: .*could not be written.* are missing.*; make room and give the same command again\n", said
    )
    assert path is None or path in said


def test_other_errors_of_the_system_stay_what_they_are(monkeypatch):
    def fail(options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(phantom, "run", fail)
    with pytest.raises(OSError, match="Input/output error"):
        main(["phantom", "somewhere"])


def test_an_input_error_that_monai_has_wrapped_is_one_sentence(monkeypatch, capsys):
    def fail(options):
        try:
            raise InputError("the cache is a file")
        except InputError as error:
            raise RuntimeError("Failed to evaluate ConfigExpression") from error

    monkeypatch.setattr(phantom, "run", fail)
    with pytest.raises(SystemExit) as ended:
        main(["phantom", "somewhere"])
    assert ended.value.code == UNUSABLE
    assert capsys.readouterr().err == "error: the cache is a file\n"
