"""What people see: tables in bits per dimension, the summary, the printed result."""
