"""What the results say: correlations, rankings, plots, and a report that holds them all."""
