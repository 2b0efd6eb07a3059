"""What a search is asked: a budget, the choices that may meet it, and their costs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from todm.errors import BudgetError
from todm.search.budget import Budget, describe
from todm.search.choice import Choice, Compression
from todm.supernet.space import SearchSpace

Costs = Callable[[Choice], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A budget, the choices that may meet it, and their costs.

    Attributes:
        space: the subnets.
        budget: the limits.
        compressions: those that may be chosen.
        costs: gives the costs of a choice.
    """

    space: SearchSpace
    budget: Budget
    compressions: Sequence[Compression]
    costs: Costs

    def holds(self, choice: Choice) -> bool:
        """Whether a choice keeps the budget."""
        return self.budget.holds(self.costs(choice))

    def use(self, choice: Choice) -> float:
        """The share of the budget that it uses."""
        return self.budget.use(self.costs(choice))

    def check(self) -> None:
        """Refuse an impossible budget before anything is evaluated.

        Raises:
            BudgetError: no subnet keeps it; the message names the nearest one and its costs.
        """
        smallest = [Choice(self.space.smallest, c) for c in self.compressions]
        nearest = min(smallest, key=self.use)
        if not self.holds(nearest):
            names = [
                *self.budget.limits,
                *(n for n in ("params", "size") if n not in self.budget.limits),
            ]
            costs = self.costs(nearest)
            raise BudgetError(
                f"no subnet keeps the budget {self.budget.text}: the nearest ({nearest}) has "
                f"{describe({name: costs[name] for name in names})}; raise the budget, allow another "
                "compression or train a supernet with a smaller subnet"
            )
