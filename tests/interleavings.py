"""What some writers and readers of events do, in any order."""

from hypothesis import strategies as st

from ecotone_fastapi.testing.conformance.event_order import Step

STEPS = st.lists(
    st.builds(
        Step,
        who=st.integers(0, 3),
        what=st.sampled_from(["append", "append", "alone", "commit", "rollback", "read", "read"]),
        stream=st.integers(0, 5),
        number=st.integers(1, 3),
    ),
    max_size=60,
)
