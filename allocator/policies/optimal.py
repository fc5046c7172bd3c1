"""The exact answer, by mixed-integer programming. It may take seconds; `deadline` is the policy for live use."""

from allocator.problem import Problem, Solution
from allocator.solver.arrays import rows_of, solution_of


class Optimal:
    """Most weight in time, then the best weighted quality, both proved optimal: see `allocator.solver.milp`.

    `solve` raises ValueError for weights that differ by more than an exact answer can tell apart.
    """

    name = "optimal"
    static_shares = False
    minimum_rate = True
    sheds = True

    def __init__(self) -> None:
        from allocator.solver.milp import exact_choice  # SciPy takes a second to import, and other policies need none

        self._exact_choice = exact_choice

    def solve(self, problem: Problem) -> Solution:
        return solution_of(problem, self._exact_choice(rows_of(problem)).choice)
