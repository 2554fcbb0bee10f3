"""What every other folder may use: files written whole, and where a number comes from."""
