"""What a run learned and what it did not, told to people from its ledger."""
