"""What a run will cost before it is run: operations, memory, time, disk, and warnings of known mistakes."""

from plsc.planning.memory import Memory
from plsc.planning.planner import Plan, plan

__all__ = ["Memory", "Plan", "plan"]
