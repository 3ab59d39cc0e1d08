"""The instruments that are told what happens when it happens: durations and counts."""

from opentelemetry.metrics import Counter, Histogram, Meter

from ecotone_fastapi.adapters.opentelemetry import conventions


class Instruments:
    """The four conventional instruments, and ours for what the conventions do not name.

    Args:
        meter: Makes them.

    Attributes:
        operation_duration: How long it takes to send, receive and settle.
        process_duration: How long handlers take, with everything around them that belongs to their unit of work.
        sent: Messages that were to be sent, whether that went well or not.
        consumed: Messages that were lent to consumers.
        retries: Runs that follow a failed one, `instant` or `delayed`.
        parked: Messages that were given up.
        redeliveries: Messages that somebody had before and told nothing about.
        leases_lost: Leases that had ended before their messages were settled.
        publish_unknown: Messages that a server was handed and did not confirm.
        commit_unknown: Transactions whose COMMIT was not answered.
        claim_duration: How long it takes to claim messages in a database, without the wait for them.
        claim_size: How many messages a claim has brought: of an outbox, the batch that its relay sends.
    """

    def __init__(self, meter: Meter) -> None:
        self.operation_duration: Histogram = meter.create_histogram(
            conventions.OPERATION_DURATION,
            unit="s",
            description="Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=conventions.DURATION_BUCKETS,
        )
        self.process_duration: Histogram = meter.create_histogram(
            conventions.PROCESS_DURATION,
            unit="s",
            description="Duration of processing operation.",
            explicit_bucket_boundaries_advisory=conventions.DURATION_BUCKETS,
        )
        self.sent: Counter = meter.create_counter(
            conventions.SENT_MESSAGES,
            unit="{message}",
            description="Number of messages producer attempted to send to the broker.",
        )
        self.consumed: Counter = meter.create_counter(
            conventions.CONSUMED_MESSAGES,
            unit="{message}",
            description="Number of messages that were delivered to the application.",
        )
        self.retries: Counter = meter.create_counter(
            "ecotone.retries",
            unit="{retry}",
            description="Number of times that failed messages were tried again, at once or later.",
        )
        self.parked: Counter = meter.create_counter(
            "ecotone.parked",
            unit="{message}",
            description="Number of messages that were given up and moved to the dead letter.",
        )
        self.redeliveries: Counter = meter.create_counter(
            "ecotone.redeliveries",
            unit="{message}",
            description="Number of messages that came again because a consumer had one and told nothing about it.",
        )
        self.leases_lost: Counter = meter.create_counter(
            "ecotone.leases.lost",
            unit="{lease}",
            description="Number of messages whose lease had ended before they were settled.",
        )
        self.commit_unknown: Counter = meter.create_counter(
            "ecotone.commit.unknown",
            unit="{transaction}",
            description="Number of transactions whose COMMIT was not answered: they may have been committed.",
        )
        self.claim_duration: Histogram = meter.create_histogram(
            "ecotone.claim.duration",
            unit="s",
            description="Duration of claiming messages in a database, without the wait for them.",
            explicit_bucket_boundaries_advisory=conventions.DURATION_BUCKETS,
        )
        self.claim_size: Histogram = meter.create_histogram(
            "ecotone.claim.size",
            unit="{message}",
            description="Number of messages that one claim has brought; of an outbox, the batch of its relay.",
            explicit_bucket_boundaries_advisory=conventions.SIZE_BUCKETS,
        )
        self.publish_unknown: Counter = meter.create_counter(
            "ecotone.publish.unknown",
            unit="{message}",
            description="Number of messages handed to a server that did not confirm them: they may have arrived.",
        )
