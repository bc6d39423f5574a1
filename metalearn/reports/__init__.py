"""What a run leaves behind for people: tables, pictures and the summary on the screen."""
