"""Results of a sweep: tables, plots, pages, the best configuration and its confirmation."""
