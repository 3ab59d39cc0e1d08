"""What was traced, as text: one line a span, children below their parent, traces apart from each other."""

from collections.abc import Iterable, Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanKind


class Traces:
    """A provider whose spans a test can read."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """All spans that have ended, in the order in which they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> Sequence[ReadableSpan]:
        """The spans with this name, in the order in which they began."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only span with this name."""
        (span,) = self.named(name)
        return span

    def forget(self) -> None:
        self._exporter.clear()

    def tree(self) -> str:
        return tree(self.spans)


def tree(spans: Iterable[ReadableSpan]) -> str:
    """Draw spans: their kind unless it is INTERNAL, `~` and the names of what they are linked to, `!` and the error."""
    spans = list(spans)
    names = {id_of(span): span.name for span in spans}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in spans:
        parent = span.parent.span_id if span.parent is not None else None
        children.setdefault(parent if parent in names else None, []).append(span)
    lines: list[str] = []

    def draw(parent: int | None, depth: int) -> None:
        for span in children.get(parent, []):
            lines.append("  " * depth + _line(span, names))
            draw(id_of(span), depth + 1)

    draw(None, 0)
    return "\n".join(lines)


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


def traceparent_of(span: ReadableSpan) -> str:
    """The header that tells of a span."""
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def linked(span: ReadableSpan) -> set[int]:
    """The ids of the spans that a span is linked to."""
    return {link.context.span_id for link in span.links}


def _line(span: ReadableSpan, names: dict[int, str]) -> str:
    attributes = span.attributes or {}
    parts = [span.name]
    if span.kind is not SpanKind.INTERNAL:
        parts.append(span.kind.name)
    parts += [f"~ {names.get(link.context.span_id, 'elsewhere')}" for link in span.links]
    if "error.type" in attributes:
        parts.append(f"! {attributes['error.type']}")
    return " ".join(parts)
