"""Recipe -> model parts, optimizer groups, stages."""
