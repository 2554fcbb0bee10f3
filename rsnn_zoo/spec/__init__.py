"""What names, data sets and configurations say. Nothing here needs torch."""
