"""The names of OpenTelemetry's semantic conventions that are used here, in one place and of one version.

Most of those about messaging are not stable yet: when they change, this is the file to change.
"""

SEMCONV_VERSION = "1.44.0"
"""The version of the semantic conventions."""
SCHEMA_URL: str = f"https://opentelemetry.io/schemas/{SEMCONV_VERSION}"
"""What tells tools which version the names are of."""

SCOPE = "ecotone_fastapi"
"""The name of the instrumentation scope."""

# Attributes about messages, see docs/messaging/messaging-spans.md of the conventions
SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION_NAME = "messaging.destination.name"
CONSUMER_GROUP = "messaging.consumer.group.name"
MESSAGE_ID = "messaging.message.id"
CONVERSATION_ID = "messaging.message.conversation_id"
BATCH_COUNT = "messaging.batch.message_count"
CLIENT_ID = "messaging.client.id"
DELIVERY_TAG = "messaging.rabbitmq.message.delivery_tag"
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"

# Attributes that are not only about messages
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
FUNCTION_NAME = "code.function.name"
DATABASE = "db.system.name"

ERROR_OTHER = "_OTHER"
"""The `error.type` of a failure that has no type."""

# What OPERATION_TYPE can be
CREATE = "create"
SEND = "send"
RECEIVE = "receive"
PROCESS = "process"
SETTLE = "settle"

# Ours: what the conventions have no name for
KIND = "ecotone.message.kind"
"""`command`, `query` or `event`."""
TYPE = "ecotone.message.type"
"""The name of the message's type."""
KEY = "ecotone.message.key"
"""The key that a message was sent to."""
ENDPOINT = "ecotone.endpoint"
"""The id of the handler."""
ATTEMPT = "ecotone.attempt"
"""Which attempt it is to handle a message: 1 is the first one."""
CHANNEL = "ecotone.channel"
"""The name of the channel, as the application knows it."""

DEAD_LETTER = "ecotone_dead_letter"
"""The SYSTEM of messages that were given up."""
EVENT_STORE = "ecotone_event_store"
"""The SYSTEM of stored events, which come to a projection through no channel."""

# Instruments, see docs/messaging/messaging-metrics.md of the conventions
OPERATION_DURATION = "messaging.client.operation.duration"
PROCESS_DURATION = "messaging.process.duration"
SENT_MESSAGES = "messaging.client.sent.messages"
CONSUMED_MESSAGES = "messaging.client.consumed.messages"

DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of both durations, in seconds."""

SIZE_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Upper bounds of the sizes of batches, in messages."""

# Attributes of our own instruments, and of their scope
APPLICATION = "ecotone.application"
"""What an application is called, where a process has several."""
RETRY_KIND = "ecotone.retry.kind"
"""`instant` or `delayed`."""
CONSUMER_NAME = "ecotone.consumer.name"
"""The name of what runs beside the application."""
CONSUMER_STATE = "ecotone.consumer.state"
"""`running`, `paused`, `waiting` …"""
PROJECTION_NAME = "ecotone.projection.name"
"""The name of a projection."""
OBSERVATION_PART = "ecotone.observation.part"
"""What kind of thing could not be asked: `channel`, `outbox`, `dead_letters`, `scheduled`, `projection`."""
OBSERVATION_NAME = "ecotone.observation.name"
"""Which one of them."""
