"""Runs after they were done: their records, tables that compare them, a report. Importing it imports no Paddle."""
