"""Inputs that nobody writes by accident: things that are no regular files, and wrong values for every field of a record."""

import copy
import json
import os
import socket
import threading

DEEP = 100_000  # levels, far beyond any recursion limit


def pipe(path):
    os.mkfifo(path)


def socket_file(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the address has room for 108 characters only
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def folder(path):
    path.mkdir()
    (path / "inside").write_text("x")


def loop(path):
    path.symlink_to(path.name)


def dangling(path):
    path.symlink_to("nowhere")


def device(path):
    path.symlink_to("/dev/zero")


NO_FILES = (pipe, socket_file, folder, loop, dangling, device)


def within(seconds, function):
    """Return the result of a function, or its exception; fail when it takes longer."""
    results = []

    def run():
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"it has not returned after {seconds} s"
    return results[0]


def fields(value, place=()):
    """Yield the places of all values inside of a JSON value, as tuples of keys and list positions."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from fields(inner, (*place, key))


def at(value, place):
    """Return what a JSON value holds at a place."""
    for key in place:
        value = value[key]
    return value


def replaced(value, place, new):
    """Return a copy of a JSON value with another value at a place."""
    whole = copy.deepcopy(value)
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return whole


MARK = "the wrong value comes here"
# JSON texts, as many of them are not values of Python
WRONG = (
    *("null", "true", "-1", "0", "0.5", "1e9", "1000000000", "-1e300", "1e999", "9" * 5000, "NaN", "-Infinity"),
    *('""', '"x"', '"../x"', '"\\ud800"', '"a\\u0000b"', "[]", "{}", "[[1]]", '{"a": 1, "a": 1}', "[1, NaN]", "[null]"),
    *("[" * 100 + "]" * 100, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP),
)


def with_wrong(value, place, wrong):
    """Return the JSON text of a value with a wrong JSON text at a place."""
    return json.dumps(replaced(value, place, MARK)).replace(json.dumps(MARK), wrong)
