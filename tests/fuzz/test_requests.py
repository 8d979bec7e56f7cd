"""The short version of mutated requests; `python -m tests.fuzz.requests_fuzz --count 2000` is the long one."""

from tests.fuzz.requests_fuzz import fuzz
from tests.helpers.serving import needs_label_environment


@needs_label_environment
def test_mutated_requests_are_answered_without_500_and_leave_nothing(tmp_path):
    tally = fuzz(150, 1, tmp_path, print)
    assert tally.sent == 150
    assert tally.problems == []
    assert tally.answers["200"] > 20
    assert tally.answers["422"] > 5
