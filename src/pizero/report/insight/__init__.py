"""What a policy does inside for one observation: measured, drawn as a page, written as a recording."""
