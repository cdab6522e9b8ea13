"""The page in this process over a small ledger, and a visitor that sends requests to it."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import argon2
import httpx

from daemon.config import Config
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.ledger.view import View
from daemon.spool import Spool
from daemon.web.app import build
from daemon.web.visit import Node

PASSWORD = "a long enough one"
ORIGIN = "http://127.0.0.1:8112"


@lru_cache(maxsize=1)
def password_hash() -> str:
    # Cheap, because every test that logs in pays for it.
    return argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)


def users() -> list[dict[str, str]]:
    return [
        {"name": "looker", "password_hash": password_hash(), "role": "look"},
        {"name": "actor", "password_hash": password_hash(), "role": "act"},
    ]


class Site:
    """One node's page, with the audit trail enabled."""

    def __init__(self, folder: Path, **web: Any) -> None:
        url = f"sqlite:///{folder}/ledger.db"
        self.settings = Config.model_validate(
            {
                "ledger": url,
                "spool": str(folder / "spool"),
                "web": web or True,
                "audit": {"file": str(folder / "audit.log")},
                "destinations": [
                    {"name": "pacs", "ae_title": "PACS", "host": "pacs.example", "port": 104}
                ],
            }
        )

        assert self.settings.web is not None
        self.ledger = Ledger(url)
        self.ledger.is_audited = True
        self.spool = Spool(folder / "spool")
        self.spool.claim(self.ledger.spool_identity)
        self.view = View.open(url)
        self.node = Node.of(self.settings, self.settings.web, self.ledger, self.view)
        self.app = build(self.node, self.spool)

    def close(self) -> None:
        self.view.close()
        self.ledger.close()

    def receive(self, uid: str, sender: str = "XRAY1", data: bytes = b"bytes") -> None:
        name = self.spool.write(data)
        arrival = Arrival(
            name, "1.2.840.10008.5.1.4.1.1.1", uid, "1.2.840.10008.1.2.1", sender, "dimse", 1,
            len(data), "10.0.4.11",
        )  # fmt: skip
        self.ledger.receive([arrival])

    def end(
        self, state: str, results: dict[str, bytes] | None = None, owed: str = "pacs", **more: Any
    ) -> None:
        """End the next waiting image; its results are owed to the destination `owed`."""
        (job,) = self.ledger.claim_images("worker:1", 1)
        made = tuple(
            StoredResult(
                kind, self.spool.write(data), "1.2.840.10008.5.1.4.1.1.7",
                f"{job.sop_instance_uid}.9.{index}", "1.2.840.10008.1.2.4.50", len(data),
            )
            for index, (kind, data) in enumerate((results or {}).items())
        )  # fmt: skip
        completion = Completion(state, f"digest {job.id}", results=made, **more)
        self.ledger.complete(job, completion, {owed: ("SC", "SEG")})

    def audited(self) -> list[tuple[str, dict[str, str]]]:
        """The events that wait for the audit trail: (event, facts)."""
        rows, _ = self.ledger.claim_audit("sender:1", 1000)
        return [(row.event, dict(row.facts)) for row in rows]


class Visitor:
    """An HTTP client with cookies, for the page in this process."""

    def __init__(self, site: Site, address: str = "127.0.0.1") -> None:
        self._transport = httpx.ASGITransport(site.app, client=(address, 40000))
        self.cookies = httpx.Cookies()

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=self._transport, base_url=ORIGIN, cookies=self.cookies
            ) as client:
                response = await client.request(method, path, **more)
                self.cookies = client.cookies
                return response

        return asyncio.run(once())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.ask("GET", path, **more)

    def post(self, path: str, form: dict[str, str], **more: Any) -> httpx.Response:
        return self.ask("POST", path, data=form, **more)

    def token(self, path: str = "/") -> str:
        found = re.search(r'name="token" value="([^"]+)"', self.get(path).text)
        assert found is not None, f"{path} has no form"
        return found[1]

    def log_in(self, name: str, password: str = PASSWORD) -> httpx.Response:
        form = {"token": self.token("/login"), "name": name, "password": password, "next": "/"}
        return self.post("/login", form)
