"""What every floor may use: random states, parameter checks, progress bars."""
