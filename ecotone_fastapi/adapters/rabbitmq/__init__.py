"""RabbitMQ: messages cross the process by a broker, with publisher confirms and delays."""

from ecotone_fastapi.adapters.rabbitmq.channel import RabbitMQChannel

__all__ = ["RabbitMQChannel"]
