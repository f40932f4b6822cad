"""Where a key goes."""

import pytest

from libs.common.kafka import partition_of


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_a_key_goes_where_java_clients_put_it(key: str, hashed: int) -> None:
    assert partition_of(key.encode(), 2**31) == hashed & 0x7FFFFFFF
