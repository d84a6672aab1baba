"""Robot datasets on disk: reading and writing the LeRobot format, without the LeRobot package."""
