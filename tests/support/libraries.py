"""What services import that knows nothing of their environment: loaded once, before their processes are forked (see forked.py)."""

import gc
import signal
import sys
from importlib import import_module

from libs.local.process import LIBC, PR_SET_PDEATHSIG

if sys.platform == "linux":  # else it would live as long as its children do, and they as long as it does
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

for name in (
    "anyio._backends._asyncio",
    "concurrent.futures.thread",
    "confluent_kafka.admin",
    "cronsim",
    "cryptography.hazmat.primitives.ciphers.aead",
    "email.policy",
    "httpcore",
    "httpx",
    "jinja2.sandbox",
    "joserfc.jwk",
    "joserfc.jws",
    "mt940",
    "prometheus_client",
    "psycopg2.extras",
    "pydantic.json_schema",
    "pydantic_settings",
    "rich.console",
    "rich.progress",
    "rich.table",
    "python_multipart",
    "smtplib",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "sqlite3",
    "starlette.applications",
    "structlog",
    "typer.main",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
    "uvicorn.protocols.http.h11_impl",
    "zstandard",
    "libs.common.contracts.registry",  # models by the hundred, which are half of what starting a service costs
    "libs.common.db",
    "libs.common.kafka",
    "libs.common.seal",
):
    import_module(name)

assert "libs.common.crash" not in sys.modules  # which reads as it is imported where the new process is to die

gc.freeze()  # or each process would copy all pages of these objects when it first collects
