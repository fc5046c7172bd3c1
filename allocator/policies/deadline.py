"""The default: `optimal` to within a small gap, in the time that a live decision has."""

from allocator.problem import Problem, Solution
from allocator.solver.arrays import rows_of, solution_of
from allocator.solver.enumerate import enumerate_choices
from allocator.solver.lexicographic import solve_lexicographic


class Deadline:
    """Most weight in time, then the best weighted quality, by Lagrange multipliers and a short search around them.

    See `allocator.solver.lexicographic` for the method and `scout bench allocator` for its accuracy and speed.
    """

    name = "deadline"
    static_shares = False
    minimum_rate = True
    sheds = True
    hedges = True

    def solve(self, problem: Problem) -> Solution:
        few = enumerate_choices(problem)
        if few is not None:
            return few
        rows = rows_of(problem)
        found = solve_lexicographic(rows)
        return solution_of(problem, found.choice, found.gap(rows))
