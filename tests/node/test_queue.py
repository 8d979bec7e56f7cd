"""The queue on the disk: what is received stays, whenever the process ends."""

import os
import sqlite3

import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.node.queue import Queue


@pytest.fixture
def make(tmp_path):
    """Open the queue in a folder; all are closed at the end."""
    opened = []

    def open_queue():
        opened.append(Queue(tmp_path / "queue"))
        return opened[-1]

    yield open_queue
    for queue in opened:
        queue.close()


def arrive(queue, uid="1.2.3", content=b"picture"):
    file = queue.incoming / "a.part"
    file.write_bytes(content)
    return queue.receive(uid, file, content.hex())


def score(queue, names=("a.dcm",), reason=""):
    [item] = queue.to_score(1)
    for name in names:
        (queue.results / name).write_bytes(b"result")
    queue.scored(item, names, {"abnormal": False}, reason)
    return item


def test_an_image_goes_through_its_states_and_leaves_no_file(make):
    queue = make()
    what, name = arrive(queue)
    assert what == "new"
    assert "1.2.3" not in name
    item = score(queue)
    assert not queue.image(item).exists()
    [item] = queue.to_send(5)
    assert (item.state, item.files) == ("ready", ("a.dcm",))
    queue.done([item])
    assert queue.states() == {"received": 0, "ready": 0, "sent": 0, "done": 1, "failed": 0}
    assert queue.waiting == 0
    assert not list(queue.results.iterdir()) + list(queue.images.iterdir()) + list(queue.incoming.iterdir())


def test_the_same_image_is_scored_once_and_another_under_its_uid_is_refused(make):
    queue = make()
    first = arrive(queue)
    assert arrive(queue) == ("repeated", first[1])
    assert arrive(queue, content=b"other") == ("other", first[1])
    assert queue.states()["received"] == 1
    assert queue.image(queue.to_score(1)[0]).read_bytes() == b"picture"
    score(queue)
    assert arrive(queue) == ("repeated", first[1])
    assert queue.states()["ready"] == 1
    assert queue.totals()["repeated"] == 2


def test_what_failed_to_be_stored_is_tried_again_when_it_is_sent_again(make):
    queue = make()
    arrive(queue)
    item = score(queue)
    assert not queue.refused(item, 0.0, 2, "archive_refused")
    [item] = queue.to_send(1)
    assert queue.refused(item, 0.0, 2, "archive_refused")
    assert queue.states()["failed"] == 1
    assert queue.totals()["reason_archive_refused"] == 1
    arrive(queue)
    [item] = queue.to_send(1)
    assert (item.sends, item.reason) == (0, "")


def test_another_process_continues_where_one_was_killed(tmp_path):
    """Every step is committed, and half files are removed at the start."""
    child = os.fork()
    if child == 0:
        queue = Queue(tmp_path / "queue")
        arrive(queue, "1.1", b"one")
        arrive(queue, "1.2", b"two")
        score(queue, ["x.dcm"])
        (queue.incoming / "half.part").write_bytes(b"half")
        (queue.images / "renamed-but-not-committed.dcm").write_bytes(b"x")
        (queue.results / "written-but-not-committed.dcm").write_bytes(b"x")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    queue = Queue(tmp_path / "queue")
    try:
        assert [item.files for item in queue.to_send(5)] == [("x.dcm",)]
        [item] = queue.to_score(5)
        assert queue.image(item).read_bytes() == b"two"
        assert [path.name for path in queue.images.iterdir()] == [f"{item.id}.dcm"]
        assert [path.name for path in queue.results.iterdir()] == ["x.dcm"]
        assert not list(queue.incoming.iterdir())
        assert queue.waiting == 2
    finally:
        queue.close()


def test_commitment_and_what_is_overdue(make):
    queue = make()
    arrive(queue)
    item = score(queue)
    queue.asked([item], "9.9", until=0.0)
    assert [found.id for found in queue.in_transaction("9.9")] == [item.id]
    assert queue.in_transaction("") == []
    assert [found.id for found in queue.overdue()] == [item.id]
    assert queue.to_send(1) == []


def test_images_under_way_are_not_taken_twice(make):
    queue = make()
    for number in range(3):
        arrive(queue, f"1.{number}", b"%d" % number)
    first = queue.to_score(2)
    assert [item.number for item in queue.to_score(2, [item.number for item in first])] == [3]
    queue.trying(first)
    assert [item.tries for item in queue.to_score(3)] == [1, 1, 0]


def test_old_rows_are_forgotten_and_only_those(make):
    queue = make()
    arrive(queue)
    queue.done([score(queue)])
    arrive(queue, "1.9", b"waits")
    assert queue.forget(0.0) == 0
    assert queue.forget(2e10) == 1
    assert queue.states()["received"] == 1
    assert arrive(queue)[0] == "new"


def test_only_the_owner_may_look(make):
    assert make().folder.stat().st_mode & 0o077 == 0


def test_a_folder_of_something_else_and_a_second_node_are_refused(make, tmp_path):
    make()
    with pytest.raises(InputError, match="another node works"):
        Queue(tmp_path / "queue")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        Queue(tmp_path / "other")


def test_a_damaged_database_is_named(make, tmp_path):
    queue = make()
    queue.close()
    (tmp_path / "queue" / "queue.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match="damaged"):
        Queue(tmp_path / "queue")


def test_no_uid_is_in_the_database(make):
    queue = make()
    arrive(queue, "1.2.345.6789")
    score(queue)
    rows = sqlite3.connect(queue.folder / "queue.sqlite").execute("SELECT * FROM items").fetchall()
    assert "1.2.345.6789" not in repr(rows)


def test_errors_are_kept_in_order_and_bounded(make, monkeypatch):
    from monai_wscxr.node import queue as module

    monkeypatch.setattr(module, "_ERRORS_KEPT", 3)
    queue = make()
    for number in range(5):
        queue.error("reason", f"message {number}", "id")
    assert [error["message"] for error in queue.errors(10)] == ["message 4", "message 3", "message 2"]
