"""What a run costs and produced: the bill, estimates, the plan, the report."""
