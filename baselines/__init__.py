"""The shelf of schemes: one file each, its name = its function's name = the leaderboard's name."""
