"""A Flower app: the same run as in one process, on machines that keep their data."""
