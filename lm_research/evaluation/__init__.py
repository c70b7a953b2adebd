"""Models judged on suites of tasks: predictions that are kept, metrics with intervals, pages to read, and tests of differences."""
