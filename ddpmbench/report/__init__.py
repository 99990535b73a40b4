"""Tables in bits per dimension, summaries, printed results and pages."""
