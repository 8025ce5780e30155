"""What a channel layer costs, side by side with others: ``python -m bench --help``."""
