"""Exit statuses of the command; 0 is success."""

from __future__ import annotations

ANSWER_NO = 1  # `bank verify` found damage, `check-precision` exceeded a tolerance
UNUSABLE = 2  # what was given cannot be used; one sentence on stderr says why
SOME_REJECTED = 3  # some images could not be predicted; the results are complete
INTERRUPTED = 130  # stopped by Ctrl-C; the same command continues
