"""Tasks: what one update learns from, and what an evaluation measures."""

from plsc.tasks.base import PreparesBatch, Task, TaskOutput
from plsc.tasks.classification import Classification

__all__ = ["Classification", "PreparesBatch", "Task", "TaskOutput"]
