"""What a handler may raise, by who must act on it. The consumer loop's table of answers is in `consumer.py`."""


class Malformed(Exception):
    """One event cannot be read or breaks its contract: its sender must act. It becomes a dead letter, the rest goes on."""

    def __init__(self, code: str, message: str, pointer: str = "") -> None:
        super().__init__(f"{code}: {message}" + (f" at {pointer}" if pointer else ""))
        self.code = code
        self.message = message
        self.pointer = pointer


class Transient(Exception):
    """Nothing happened and the same work will succeed later (database gone, deadlock, lock time-out). Nobody must act."""


class Fatal(Exception):
    """The process must not go on (offsets ahead of the data, an older schema). An operator must act; the text says how."""


class LeaseLost(Exception):
    """The lease would not outlast the call, so the call was not sent. Whoever holds the lease now decides."""
