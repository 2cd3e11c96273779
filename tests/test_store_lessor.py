"""The clock of leases against a plain model."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran.store.lessor import Lessor, minimum_ttl_s


@dataclass
class Naive:
    """Granted time and deadline by lease; those being revoked."""

    leases: dict[int, tuple[int, float]] = field(default_factory=dict)
    revoking: set[int] = field(default_factory=set)

    def live(self, lease: int, now: float) -> bool:
        return lease in self.leases and self.leases[lease][1] > now


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["grant", "revoke", "renew", "renew", "left", "expired", "retry"]),
        st.integers(1, 6),
        st.integers(1, 20),
        st.sampled_from([0.0, 0.0, 0.25, 1.0, 5.0]),
    ),
    max_size=120,
)


def run_step(lessor: Lessor, model: Naive, action: str, lease: int, ttl: int, now: float) -> None:
    if action == "grant" and lease not in model.leases:
        lessor.grant(lease, ttl, now)
        model.leases[lease] = (ttl, now + ttl)
    elif action == "revoke":
        lessor.revoke(lease)
        model.leases.pop(lease, None)
        model.revoking.discard(lease)
    elif action == "renew":
        live = model.live(lease, now) and lease not in model.revoking
        granted = model.leases[lease][0] if live else 0
        assert lessor.renew(lease, now) == granted
        if live:
            model.leases[lease] = (granted, now + granted)
    elif action == "left":
        known = lessor.time_to_live(lease, now)
        if model.live(lease, now):
            granted, deadline = model.leases[lease]
            assert known == (int(deadline - now), granted)
        else:
            assert known is None
    elif action == "expired":
        due = {key for key, (_, deadline) in model.leases.items() if deadline <= now}
        due -= model.revoking
        taken = lessor.expired(now, ttl % 4)
        assert len(taken) == len(set(taken)) == min(ttl % 4, len(due))
        assert set(taken) <= due
        # Those that expired first come first.
        late = max((model.leases[key][1] for key in taken), default=0)
        assert all(model.leases[key][1] >= late for key in due - set(taken))
        model.revoking |= set(taken)
    elif action == "retry":
        lessor.retry(lease, now)
        model.revoking.discard(lease)


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_lessor_is_the_model(steps: list[tuple[str, int, int, float]]) -> None:
    lessor, model, now = Lessor(), Naive(), 100.0
    for action, lease, ttl, pause in steps:
        now += pause
        run_step(lessor, model, action, lease, ttl, now)
        assert len(lessor) == len(model.leases)
        order = [model.leases[key][1] for key in lessor.by_remaining_time()]
        assert order == sorted(order)
    # In the end everything expires, once.
    for lease in model.revoking:
        lessor.revoke(lease)
        model.leases.pop(lease, None)
    assert sorted(lessor.expired(1e9, 1000)) == sorted(model.leases)
    assert lessor.expired(1e9, 1000) == []


def test_restored_leases_get_their_time_anew() -> None:
    lessor = Lessor()
    lessor.grant(9, 5, 0.0)
    lessor.restore([(1, 10, 0), (-(1 << 63), 60, 0)], now=100.0, extend_s=1.0)
    assert len(lessor) == 2
    assert lessor.time_to_live(1, 100.0) == (11, 10)
    assert lessor.expired(110.9, 10) == []
    assert lessor.expired(111.0, 10) == [1]
    assert lessor.renew(1, 111.0) == 0
    assert lessor.by_remaining_time() == [1, -(1 << 63)]


def test_renewals_do_not_fill_the_memory() -> None:
    lessor = Lessor()
    for lease in range(1, 11):
        lessor.grant(lease, 1000, 0.0)
    for number in range(10_000):
        assert lessor.renew(number % 10 + 1, float(number) / 100) == 1000
    assert len(lessor._queue) <= 64 + 4 * 10
    assert sorted(lessor.expired(1e6, 100)) == list(range(1, 11))


def test_least_time_to_live() -> None:
    assert [minimum_ttl_s(ms) for ms in (100, 1000, 1333, 1334, 50_000)] == [1, 2, 2, 3, 75]


def test_a_new_leader_goes_on_with_the_recorded_time() -> None:
    lessor = Lessor()
    lessor.restore([(1, 100, 7), (2, 100, 0), (3, 100, 100)], now=50.0, extend_s=1.0)
    assert [lessor.time_to_live(lease, 50.0) for lease in (1, 2, 3)] == [
        (8, 100),
        (101, 100),
        (101, 100),
    ]
    assert [lessor.is_recorded_lower(lease) for lease in (1, 2, 3)] == [True, False, False]


def test_a_lease_that_is_kept_costs_no_checkpoint() -> None:
    lessor = Lessor()
    lessor.grant(1, 60, 0.0)
    for now in range(0, 600, 20):
        assert lessor.renew(1, float(now)) == 60
        assert lessor.checkpoints(now + 19.9) == []


def test_a_lease_that_nobody_renews_is_recorded_in_steps_and_never_too_short() -> None:
    lessor = Lessor()
    lessor.grant(1, 100, 0.0)
    recorded = []
    for tenth in range(1000):
        now = tenth / 10
        for lease, remaining_s in lessor.checkpoints(now):
            assert lease == 1
            assert remaining_s >= 100 - now
            lessor.record(lease, remaining_s, only_lower=True)
            recorded.append(remaining_s)
        if now >= 40:
            # At most a step of a twentieth of the time to live, and the rounding.
            assert recorded[-1] - (100 - now) <= 6
    assert recorded == sorted(set(recorded), reverse=True)
    assert lessor.is_recorded_lower(1)
    lessor.record(1, 100, only_lower=True)
    assert lessor.is_recorded_lower(1)
    lessor.record(1, 100)
    assert not lessor.is_recorded_lower(1)
