"""The exact answer, by mixed-integer programming. It may take seconds; `deadline` is the policy for live use."""

from allocator.problem import Problem, Solution
from allocator.solver.arrays import choices_of, rows_of
from allocator.solver.grants import hand_out
from allocator.solver.milp import exact_choice


class Optimal:
    """Most weight in time, then the best weighted quality, both proved optimal: see `allocator.solver.milp`."""

    name = "optimal"
    standing = False
    by_need = True

    def solve(self, problem: Problem) -> Solution:
        return hand_out(problem, *choices_of(problem, exact_choice(rows_of(problem)).choice.tolist()))
