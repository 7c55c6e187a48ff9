"""What an empirical risk can be asked, a file for each kind of quantity."""
