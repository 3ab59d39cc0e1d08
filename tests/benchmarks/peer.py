"""What the `eventsourcing` package makes of the same work; imported only where it is installed."""

from typing import Any

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from sqlalchemy.engine import make_url


class PeerAccount(Aggregate):
    @event("Opened")
    def __init__(self, account: str) -> None:
        self.account = account
        self.balance = 0

    @event("Deposited")
    def deposit(self, amount: int, currency: str, reference: str) -> None:
        self.balance += amount


class Peer:
    """Saves an aggregate with so many events. It is synchronous."""

    def __init__(self, url: str) -> None:
        parts = make_url(url)
        settings: dict[str, Any] = {
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": f"{parts.database}.peer",
        }
        if parts.drivername.startswith("postgresql"):
            settings = {
                "PERSISTENCE_MODULE": "eventsourcing.postgres",
                "POSTGRES_DBNAME": parts.database,
                "POSTGRES_HOST": parts.host,
                "POSTGRES_PORT": str(parts.port or 5432),
                "POSTGRES_USER": parts.username,
                "POSTGRES_PASSWORD": parts.password or "none",
            }
        self._application: Any = Application(env=settings)

    async def append(self, account: str, times: int) -> None:
        made = PeerAccount(account=account)
        for _ in range(times - 1):  # to be opened is an event, too
            made.deposit(100, "EUR", "a payment of some importance")
        self._application.save(made)

    def close(self) -> None:
        self._application.close()
