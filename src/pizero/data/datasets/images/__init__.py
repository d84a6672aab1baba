"""The images of a LeRobot dataset: video, PNG in parquet, image files."""
