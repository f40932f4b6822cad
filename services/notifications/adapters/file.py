"""A folder in which each notice becomes a mail as a file, for whoever prints or hands them out. The same notice is the same file."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import httpx

from libs.common.workqueue import MARGIN_SECONDS, Claim, NotSent, must_not_outlast
from services.notifications.adapters.mail import Unaddressable, compose
from services.notifications.domain import ADDRESS_UNUSABLE, SENT, Outcome
from services.notifications.ports import Message


class Folder:
    """A `ports.Channel`."""

    key_seconds = float("inf")  # written again it is still one file
    renders = True

    def __init__(self, folder: Path, sender: str) -> None:
        self._folder = folder
        self._sender = sender

    def reaches(self, message: Message) -> bool:
        return True  # whoever hands the files out knows a way

    async def send(self, _client: httpx.AsyncClient, claim: Claim, messages: Sequence[Message]) -> list[Outcome] | NotSent:
        outcomes = []
        try:
            for message in messages:
                if claim.gate:
                    await claim.gate.turn()
                must_not_outlast(claim, claim.timeout_seconds + MARGIN_SECONDS)
                outcomes.append(await asyncio.to_thread(self._keep, message))
            await asyncio.to_thread(self._keep_names)
        except OSError as error:
            return NotSent("FOLDER", f"can't be written: {os.strerror(error.errno or 0)}", outage=True)
        return outcomes

    def _keep(self, message: Message) -> Outcome:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._write(f"{message.kind.lower()}-{message.notice_id}.eml", compose(message, self._sender, ""))
        except Unaddressable as error:
            return Outcome("FAILED", ADDRESS_UNUSABLE, str(error))
        return SENT

    def _keep_names(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the files' contents are there already
        finally:
            os.close(folder)

    def _write(self, name: str, content: bytes) -> None:
        """All of it or nothing: whoever reads the folder never sees a part."""
        draft = self._folder / f".{name}.part"  # one left by a process that died is written over
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._folder / name)
