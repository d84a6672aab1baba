"""What `meta/` of a LeRobot dataset says, of any version."""
