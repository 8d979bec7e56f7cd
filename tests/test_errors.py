"""An error that a person can mend ends as one sentence; every other error keeps its trace."""

import subprocess
import sys
from pathlib import Path

import pytest

from monai_wscxr.errors import InputError, find_input_error, show_input_errors_plainly

SENTENCE = "--k 0 is not possible; use 1 or more"


def raised(raise_it):
    try:
        raise_it()
    except Exception as error:
        return error
    return None


def as_it_is():
    raise InputError(SENTENCE)


def as_cause():
    try:
        as_it_is()
    except InputError as error:
        raise RuntimeError("a configuration failed") from error


def twice_as_cause():
    try:
        as_cause()
    except RuntimeError as error:
        raise KeyError("deeper") from error


def while_handling():
    try:
        as_it_is()
    except InputError:
        raise RuntimeError("on the way out")  # noqa: B904 - the implicit context is what is tested


@pytest.mark.parametrize("raise_it", [as_it_is, as_cause, twice_as_cause, while_handling])
def test_input_error_is_found_below_other_errors(raise_it):
    found = find_input_error(raised(raise_it))
    assert isinstance(found, InputError)
    assert str(found) == SENTENCE


def test_the_outermost_input_error_is_the_one_shown():
    def twice():
        try:
            as_it_is()
        except InputError as error:
            raise InputError("what it means for the command") from error

    assert str(find_input_error(raised(twice))) == "what it means for the command"


def test_other_errors_are_not_mistaken():
    def other():
        try:
            raise KeyError("a")
        except KeyError as error:
            raise ValueError("b") from error

    assert find_input_error(raised(other)) is None
    assert find_input_error(None) is None
    assert issubclass(InputError, ValueError)


def test_hook_prints_the_sentence_alone(monkeypatch, capsys):
    passed_on = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: passed_on.append(error))
    show_input_errors_plainly()
    error = raised(twice_as_cause)
    sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == f"\nerror: {SENTENCE}\n"
    assert passed_on == []
    other = RuntimeError("a bug")
    sys.excepthook(RuntimeError, other, None)
    assert passed_on == [(RuntimeError, other, None)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("error", "trace"), [("InputError('mend me')", False), ("KeyError('a bug')", True)])
def test_a_program_ends_with_status_one(error, trace):
    program = (
        "from monai_wscxr.errors import InputError, show_input_errors_plainly\n"
        "show_input_errors_plainly()\n"
        "print('before')\n"
        f"try:\n    raise {error}\n"
        "except Exception as cause:\n    raise RuntimeError('wrapped') from cause\n"
    )
    package = Path(sys.modules["monai_wscxr"].__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=package, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "before\n"
    assert ("Traceback" in done.stderr) == trace
    assert trace or done.stderr.strip() == "error: mend me"
