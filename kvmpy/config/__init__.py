"""What is wanted, as plain typed classes that check themselves and touch nothing."""
