"""How a plan is followed: Locust's clock and users carry it, the rate itself goes to the streams as it is."""

from collections.abc import Callable

from locust import LoadTestShape

from loadtest.load.plan import Plan, rate_at


class PlanShape(LoadTestShape):
    """One user for each process that has a stream, for as long as the plan lasts.

    Args:
        plan: that is followed.
        processes: how many there are now.
        tell: called with the rate of all of them together, events/s, whenever it changes.
    """

    def __init__(self, plan: Plan, processes: Callable[[], int], tell: Callable[[float], None]) -> None:
        super().__init__()
        self._plan, self._processes, self._tell = plan, processes, tell
        self._told: float | None = None

    def tick(self) -> tuple[int, float] | None:
        """Users, and how fast they come; None ends the test."""
        rate = rate_at(self._plan, self.get_run_time())
        if rate is None:
            return None
        if rate != self._told:
            self._told = rate
            self._tell(rate)
        return max(1, self._processes()), 100.0
