# Short names for the scripts of the README and CI.
.PHONY: setup check test test-gpu test-k2 test-web test-cpp test-executorch test-releases test-qemu bench pipeline

setup:
	scripts/setup.sh

check:
	scripts/check.sh

test:
	scripts/test.sh

test-gpu:
	scripts/test_gpu.sh

# Each needs the programs in its comment, and TODM_BUNDLE, a trained bundle; CI skips them.
test-web:  # node, npm and Chromium: apt-get install chromium
	export/web/setup.sh
	scripts/test.sh -m web tests/export

test-cpp:  # g++ and ORT_HOME, an unpacked release of onnxruntime
	scripts/test.sh -m cpp tests/export

test-executorch: export TODM_EXTRAS = train,dev,executorch
test-executorch:
	scripts/test.sh -m executorch tests/export

test-releases:  # old and new sherpa-onnx, each in an environment of its own
	scripts/test.sh -m releases tests/export

test-qemu:  # apt-get install qemu-user-static
	scripts/test.sh -m qemu tests/export

test-k2:  # Python 3.9 (TODM_K2_PYTHON), and 5 GB for an environment of its own
	scripts/test_k2.sh

bench:
	scripts/bench.sh

pipeline:
	recipes/librispeech/run.sh --config debug
