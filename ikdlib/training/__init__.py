"""One loop, for teachers and students, of any method, on any device."""

from ikdlib.training import processor

processor.guard()  # before the first operation of this process, or it is too late
