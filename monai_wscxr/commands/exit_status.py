"""Exit statuses of the commands besides 0 for success."""

from __future__ import annotations

ANSWER_NO = 1  # `bank verify` found damage, or `check-precision` a difference beyond a tolerance
UNUSABLE = 2  # the command cannot be run as given; one sentence on stderr says why
SOME_REJECTED = 3  # some images could not be predicted; the results of the others are complete
INTERRUPTED = 130  # stopped by Ctrl-C; the same command resumes the run
OUTPUT_CLOSED = 141  # 128 + SIGPIPE: the program that read the output has ended
