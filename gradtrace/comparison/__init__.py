"""Criteria beside one another: what their masks are worth, agree on, fall into and cost, over runs."""
