"""The forward pass h_1 … h_T: by one scan, or in parallel over time.

| cell | method |
|---|---|
| any | "sequential" |
| affine in its state, with blocks of J_t from its derivation | "parallel": equal to the scan up to rounding |
| any, T large against the steps that the state remembers | "newton": iterations, with `converged` and `residual` |
"""

from jaxbptt.trajectories._calls import Call as Call
from jaxbptt.trajectories._calls import Trajectory, flatten_steps
from jaxbptt.trajectories._calls import run_steps as run_steps
from jaxbptt.trajectories._calls import shapes_of_one_step as shapes_of_one_step
from jaxbptt.trajectories._calls import take_call as take_call
from jaxbptt.trajectories._calls import take_trajectory as take_trajectory
from jaxbptt.trajectories._newton import NewtonTrajectory
from jaxbptt.trajectories._unrolled import unroll

__all__ = ["NewtonTrajectory", "Trajectory", "flatten_steps", "unroll"]
