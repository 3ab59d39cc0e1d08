"""Mails: this shop "sends" them into a table and into the log, so that there is something to see."""

import logging
import os
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from ecotone_fastapi import query_handler
from examples.shop.database import Base, SessionDep

logger = logging.getLogger("shop.mail")


@dataclass(frozen=True)
class MailSettings:
    """Where mails come from."""

    sender: str


async def get_settings() -> MailSettings:
    return MailSettings(sender=os.environ.get("SHOP_MAIL_FROM", "shop@example.com"))


class NotificationSender(Protocol):
    """Tells customers what has become of their orders."""

    async def send_order_confirmation(self, customer: str, order_id: str, product: str) -> None: ...


class Mail(Base):
    """A row of the table of mails."""

    __tablename__ = "shop_mail"

    id: Mapped[int] = mapped_column(primary_key=True)
    sender: Mapped[str] = mapped_column(String(100))
    recipient: Mapped[str] = mapped_column(String(100))
    subject: Mapped[str] = mapped_column(String(200))


@dataclass(frozen=True)
class MailTable:
    """Sends mails into the table, in the transaction of the message that is handled: exactly one for each order."""

    session: AsyncSession
    settings: MailSettings

    async def send_order_confirmation(self, customer: str, order_id: str, product: str) -> None:
        subject = f"Your order {order_id}: {product}"
        self.session.add(Mail(sender=self.settings.sender, recipient=customer, subject=subject))
        logger.info("mail to %s: %s", customer, subject)


async def get_sender(
    session: SessionDep, settings: Annotated[MailSettings, Depends(get_settings)]
) -> NotificationSender:
    return MailTable(session, settings)


class Mailbox:
    """Knows the mails that have been sent."""

    @query_handler("mail.list")
    async def list_mails(self, session: SessionDep) -> list[dict[str, str]]:
        mails = await session.scalars(select(Mail).order_by(Mail.id))
        return [{"from": mail.sender, "to": mail.recipient, "subject": mail.subject} for mail in mails]
