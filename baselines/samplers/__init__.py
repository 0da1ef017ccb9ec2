"""Samplers, one per file: file name = sampler's name = the leaderboard's name (`rpbench list samplers`)."""
