"""Where a test may kill or freeze a process (libs/common/crash.py), by what is under way there."""

from libs.common import crash


def points(*parts: str) -> list[str]:
    return [point for point in crash.POINTS if point.partition(".")[0] in parts]


# Of calls whose request a driver or the file system writes: the first byte of that is nothing we see.
UNSEEN = [point for point in points("call") if point != "call.after_first_byte"]
UNSEEN_KINDS = ("locate", "reference", "file")
