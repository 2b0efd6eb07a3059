# The same scripts as the README and CI; nothing is done here that they do not do.
.PHONY: setup check test test-gpu bench pipeline

setup:
	scripts/setup.sh

check:
	scripts/check.sh

test:
	scripts/test.sh

test-gpu:
	scripts/test_gpu.sh

bench:
	scripts/bench.sh

pipeline:
	recipes/librispeech/run.sh --config debug
