"""Simulated mapper: `python -m libs.local.mapper --data DIR --port N`.

People and their addresses, asked for by SPAR 1.x (G2P Connect) and by SPAR 2.x, see `mapper_wire`; tokens and signatures, see
`mapper_guard`.
"""

import sqlite3
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from libs.local import mapper_guard, mapper_wire
from libs.local.simulator import Simulator, Store, application, json_response, main, rows

_UPSERT_ROWS = 10_000
_CODES = TypeAdapter(dict[str, str])


class Settings(BaseModel):
    """`refuse_repeated_message_id`: whether a message id is good for one request only."""

    max_items: int = Field(default=1000, ge=1)
    refuse_repeated_message_id: bool = False


class Mapper:
    """The application: the verbs, and the admin's API for people and settings."""

    def __init__(self, data: Path) -> None:
        self.store = Store(data / "mapper.sqlite", mapper_wire.SCHEMA + mapper_guard.SCHEMA)
        self.simulator = Simulator(self.store, parse=from_json, count_items=mapper_wire.count_items)
        self.forms = Simulator(self.store, parse=mapper_guard.parse_form, count_items=lambda form: 1)

    def application(self) -> Starlette:
        routes: list[BaseRoute] = [
            self.simulator.wire("spar1", "", "/sync/resolve", *mapper_wire.verb(mapper_wire.SPAR_1)),
            self.simulator.wire("spar2", "", "/mapper/resolve", *mapper_wire.verb(mapper_wire.SPAR_2)),
            self.forms.wire("oauth", "", "/oauth/token", mapper_guard.give_token, mapper_guard.refuse_token),
            self.simulator.wire("keymanager", "/keymanager", "/jwtSign", mapper_guard.sign_for, mapper_guard.refuse_to_sign),
            Route("/admin/people", self.put_people, methods=["POST"]),
            Route("/admin/people/count", self.count),
            Route("/admin/people/{id:path}", self.delete_person, methods=["DELETE"]),
            Route("/admin/settings", self.put_settings, methods=["PUT"]),
            Route("/admin/codes", self.put_codes, methods=["PUT"]),
            Route("/admin/guard", self.put_guard, methods=["PUT"]),
            Route("/admin/tokens", self.delete_tokens, methods=["DELETE"]),
        ]
        return application(self.store, routes + self.simulator.admin_routes())

    async def put_people(self, request: Request) -> Response:
        """Lines of JSON {id, fa}: inserts or replaces, in transactions of 10,000. A bad line stops it: HTTP 400."""
        count, rest = 0, b""
        lines: list[bytes] = []
        async for chunk in request.stream():
            *complete, rest = (rest + chunk).split(b"\n")
            lines += complete
            if len(lines) >= _UPSERT_ROWS:
                count += await self._upsert(lines)
                lines = []
        return json_response({"upserted": count + await self._upsert([*lines, rest])})

    async def _upsert(self, lines: list[bytes]) -> int:
        def upsert(db: sqlite3.Connection) -> int:
            people = from_json(b"[" + b",".join(line for line in lines if line.strip()) + b"]")
            try:
                values = [(str(person["id"]), str(person["fa"])) for person in people]
            except (KeyError, TypeError):
                raise ValueError("every line has to be an object with id and fa") from None
            db.executemany("INSERT OR REPLACE INTO people (id, fa) VALUES (?, ?)", values)
            return len(values)

        return await self.store.write(upsert)

    async def count(self, request: Request) -> Response:
        found = await self.store.read(rows("SELECT count(*) AS count FROM people"))
        return json_response(found[0])

    async def delete_person(self, request: Request) -> Response:
        values = (request.path_params["id"],)
        deleted = await self.store.write(lambda db: db.execute("DELETE FROM people WHERE id = ?", values).rowcount)
        return json_response({"deleted": deleted})

    async def put_settings(self, request: Request) -> Response:
        settings = Settings.model_validate_json(await request.body()).model_dump()
        sql = "UPDATE settings SET max_items = :max_items, refuse_repeated_message_id = :refuse_repeated_message_id"
        await self.store.write(lambda db: db.execute(sql, settings).rowcount)
        return json_response(settings)

    async def put_codes(self, request: Request) -> Response:
        codes = _CODES.validate_json(await request.body())

        def replace(db: sqlite3.Connection) -> int:
            db.execute("DELETE FROM codes")
            return db.executemany("INSERT INTO codes VALUES (?, ?)", codes.items()).rowcount

        await self.store.write(replace)
        return json_response(codes)

    async def put_guard(self, request: Request) -> Response:
        guard = mapper_guard.Guard.model_validate_json(await request.body())
        await self.store.write(lambda db: db.execute("UPDATE guard SET body = ?", (guard.model_dump_json(),)).rowcount)
        return json_response({"guarded": True})

    async def delete_tokens(self, request: Request) -> Response:
        return json_response({"deleted": await self.store.write(lambda db: db.execute("DELETE FROM tokens").rowcount)})


if __name__ == "__main__":
    main("mapper", lambda data: Mapper(data).application())
