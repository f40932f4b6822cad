"""What services import that is not the project's: loaded once, before their processes are forked (see forked.py)."""

import gc
from importlib import import_module

for name in (
    "anyio._backends._asyncio",
    "confluent_kafka",
    "cronsim",
    "cryptography.hazmat.primitives.ciphers.aead",
    "httpcore",
    "httpx",
    "jinja2.sandbox",
    "mt940",
    "prometheus_client",
    "psycopg2.extras",
    "pydantic.json_schema",
    "pydantic_settings",
    "python_multipart",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "starlette.applications",
    "structlog",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
    "uvicorn.protocols.http.h11_impl",
    "zstandard",
):
    import_module(name)

gc.freeze()  # or each process would copy all pages of these objects when it first collects
