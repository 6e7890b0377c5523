"""How many users Locust keeps, where a plan says how many events there are to be."""

from locust import LoadTestShape

from loadtest.load.plan import Plan, rate_at

_SPAWN_RATE = 100.0  # users a second: the most that Locust takes without a warning


class PlanShape(LoadTestShape):
    """So many users as the plan's rate asks for.

    Args:
        plan: that is followed.
        rate_per_user: events/s of each.
    """

    def __init__(self, plan: Plan, rate_per_user: float) -> None:
        super().__init__()
        self._plan, self._rate_per_user = plan, rate_per_user

    def tick(self) -> tuple[int, float] | None:
        """Users now, and how fast they come: almost at once."""
        rate = rate_at(self._plan, self.get_run_time())
        return None if rate is None else (max(1, round(rate / self._rate_per_user)), _SPAWN_RATE)
