"""The application: `uvicorn examples.shop.main:app` serves it, its consumers included."""

from typing import Annotated
from uuid import uuid4

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, StringConstraints

from ecotone_fastapi import CommandBusDep, Ecotone, QueryBusDep
from examples.shop.database import create_tables, database
from examples.shop.mail import Mailbox
from examples.shop.orders import NotificationService, OrderService, PlaceOrder

ecotone = Ecotone(
    [OrderService, NotificationService, Mailbox],
    channels=[database.channel("notifications")],
    plugins=[database],
)
app = FastAPI(title="Shop", lifespan=create_tables)
ecotone.install(app)

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class NewOrder(BaseModel):
    product: ShortText
    customer: ShortText


@app.post("/orders", status_code=201)
async def place_order(order: NewOrder, commands: CommandBusDep) -> dict[str, str]:
    order_id = uuid4().hex[:8]
    await commands.send(PlaceOrder(order_id, order.product, order.customer))
    return {"order_id": order_id}


@app.get("/orders/{order_id}")
async def order_status(order_id: str, queries: QueryBusDep) -> dict[str, str]:
    status = await queries.ask(order_id, to="order.get_status")
    if status is None:
        raise HTTPException(404, "there is no such order")
    return {"order_id": order_id, "status": status}


@app.get("/mails")
async def list_mails(queries: QueryBusDep) -> list[dict[str, str]]:
    return await queries.ask(to="mail.list", returns=list[dict[str, str]])
