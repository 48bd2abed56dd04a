"""From a mask to sub-operators: reordering, cost and the plan, on plain arrays."""
