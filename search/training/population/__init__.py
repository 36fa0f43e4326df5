"""Many members trained at once: stacked parameters, merged rules, C++ steps."""
