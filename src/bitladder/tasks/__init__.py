"""lm-eval's tasks: where they are defined, what a name stands for, their documents, and the order of the questions."""
