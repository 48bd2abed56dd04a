"""What a conversion would be worth, before anything is converted."""
