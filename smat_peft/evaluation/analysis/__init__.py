"""What experts have learned, and how: a file for each picture, with what it measures and how it is drawn."""
