"""Criteria, scores, masks and their comparison: what the ledger and the final weights say."""
