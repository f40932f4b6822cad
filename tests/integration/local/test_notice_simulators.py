"""The simulated Novu and the local mail server: what they answered survives a SIGKILL, and a key counts once."""

import smtplib
from pathlib import Path
from typing import Any

import httpx

from libs.local.client import MailAdmin, NovuAdmin
from tests.support.simulator import SimulatorProcess


def event(number: int, **more: Any) -> dict[str, Any]:
    to = {"subscriberId": f"P-{number}", "email": f"p{number}@people.example"}
    return {"name": "told", "to": to, "payload": {"number": number}, "overrides": {}, "transactionId": f"T-{number}", **more}


def test_novu_counts_a_key_once_also_after_it_was_killed(tmp_path: Path) -> None:
    process = SimulatorProcess("novu", tmp_path / "novu")
    process.start()
    novu = NovuAdmin(process.base_url)
    headers = {"Authorization": "ApiKey key", "Idempotency-Key": "K-1"}

    def post(path: str, body: Any, **more: str) -> httpx.Response:
        url = f"{process.base_url}/v1/events/trigger{path}"
        return httpx.post(url, json=body, headers={**headers, **more}, timeout=20, trust_env=False, verify=False)

    try:
        novu.set(api_key="key")
        novu.refuse({"P-2": "invalid_recipients"})
        events = {"events": [event(1), event(2)]}
        first = post("/bulk", events)
        assert [one["status"] for one in first.json()["data"]] == ["processed", "invalid_recipients"]
        process.kill()
        process.start()
        again = post("/bulk", events)
        assert (again.status_code, again.json()) == (201, first.json())
        assert post("/bulk", {"events": [event(1)]}).status_code == 422  # the key with something else
        assert post("", event(3), Authorization="ApiKey other").status_code == 401
        assert post("", event(3, to={"subscriberId": "P-3", "email": "none"}), **{"Idempotency-Key": "K-2"}).status_code == 422
        assert post("", event(3), **{"Idempotency-Key": "K-2"}).json()["data"]["transactionId"] == "T-3"
        assert post("/bulk", {"events": [event(n) for n in range(101)]}, **{"Idempotency-Key": "K-3"}).status_code == 422
        assert [(row["transaction_id"], row["payload"]) for row in novu.triggered()] == [
            ("T-1", {"number": 1}),
            ("T-3", {"number": 3}),
        ]
        assert [row["outcome"] for row in novu.requests()][:3] == ["triggered", "repeated", "key reused"]
    finally:
        novu.close()
        process.kill()


def test_the_mail_server_keeps_what_it_has_taken_and_its_port(tmp_path: Path) -> None:
    process = SimulatorProcess("mail", tmp_path / "mail")
    process.start()
    mail = MailAdmin(process.base_url)
    content = "From: a@b.example\r\nTo: c@d.example\r\nSubject: Été\r\nMessage-ID: <1@b.example>\r\n\r\n.dot\r\n"
    try:
        port = mail.smtp_port()
        mail.refuse({"nobody@d.example": "550 5.1.1 nobody"})
        with smtplib.SMTP("127.0.0.1", port) as server:
            refused = server.sendmail("a@b.example", ["c@d.example", "nobody@d.example"], content.encode())
        assert refused == {"nobody@d.example": (550, b"5.1.1 nobody")}
        process.kill()
        process.start()
        assert mail.smtp_port() == port
        [kept] = list(mail.mails())
        assert (kept["message_id"], kept["recipient"], kept["subject"]) == ("<1@b.example>", "c@d.example", "Été")
        assert kept["text"].strip() == ".dot"
        assert [row["path"] for row in mail.requests()] == ["MAIL", "RCPT", "RCPT", "DATA"]
    finally:
        mail.close()
        process.kill()
