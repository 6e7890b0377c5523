"""How a plan is followed: Locust's clock and users carry it, the rate itself goes to the streams as it is."""

from collections.abc import Callable

from locust import LoadTestShape

from loadtest.load.plan import Plan, rate_at


class PlanShape(LoadTestShape):
    """One user for each process that has a stream, for as long as the plan lasts.

    Args:
        plan: that is followed; it begins once all streams are ready.
        processes: how many there are now.
        ready: how many have a stream that waits for a rate.
        tell: called with the rate of all of them together, events/s, whenever it changes.
    """

    def __init__(
        self, plan: Plan, processes: Callable[[], int], ready: Callable[[], int], tell: Callable[[float], None]
    ) -> None:
        self._plan, self._processes, self._ready, self._tell = plan, processes, ready, tell
        self._told: float | None = None
        self._begun = False
        super().__init__()

    def reset_time(self) -> None:
        """Locust begins a test."""
        super().reset_time()
        self._told, self._begun = None, False

    def tick(self) -> tuple[int, float] | None:
        """Users, and how fast they come; None ends the test."""
        if not self._begun:  # Locust's clock runs, the plan's does not
            if self._ready() < self._processes():
                return max(1, self._processes()), 100.0
            self.reset_time()
            self._begun = True
        rate = rate_at(self._plan, self.get_run_time())
        if rate is None:
            return None
        if rate != self._told:
            self._told = rate
            self._tell(rate)
        return max(1, self._processes()), 100.0
