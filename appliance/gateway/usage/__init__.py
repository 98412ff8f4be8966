"""What was asked, what it cost, and what it burned."""
