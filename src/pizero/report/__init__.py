"""The architecture as a table of measured figures, pictures, and self-contained HTML reports."""
