"""What is known of a pair, in two tiers: this process's memory and, where there is one, Redis. No other room imports redis."""
