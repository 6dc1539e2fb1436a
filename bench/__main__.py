"""Run all benchmarks: kernels per type, then a whole model."""

from bench import end_to_end, kernels

kernels.main()
print()
end_to_end.main()
