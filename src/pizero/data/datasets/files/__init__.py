"""The data files of a LeRobot dataset: columns, rows, and where they are."""
