"""Models and data sets by their usual names, fetched once into a store that the cluster's nodes read."""
