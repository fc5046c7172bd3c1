"""The exact answer, by mixed-integer programming. It may take seconds; `deadline` is the policy for live use."""

from allocator.problem import Problem, Solution
from allocator.solver.arrays import rows_of, solution_of
from allocator.solver.milp import exact_choice


class Optimal:
    """Most weight in time, then the best weighted quality, both proved optimal: see `allocator.solver.milp`."""

    name = "optimal"
    static_shares = False
    minimum_rate = True

    def solve(self, problem: Problem) -> Solution:
        return solution_of(problem, exact_choice(rows_of(problem)).choice)
