"""What commands end with; README.md and COMMANDS.md say what each means."""

DONE, BROKE, WRONG_INPUT, INFEASIBLE, BROKEN_CERTIFICATE, INTERRUPTED = 0, 1, 2, 3, 4, 130
